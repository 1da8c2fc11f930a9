// Bit fields, counting, permutes, funnel shifts, three-input logic and small dot products.
#include <algorithm>

#include "lane_ops.h"

namespace kernelforge::vcuda {
namespace {

template <class T>
struct Popc {
  static uint32_t run(T a) { return static_cast<uint32_t>(__builtin_popcountll(a)); }
};
template <class T>
struct Clz {
  static uint32_t run(T a) {
    return a == 0 ? 8 * sizeof(T) : static_cast<uint32_t>(__builtin_clzll(a)) - (64 - 8 * sizeof(T));
  }
};
template <class T>
struct Brev {
  static T run(T a) {
    T r = 0;
    for (uint32_t k = 0; k < 8 * sizeof(T); ++k) r |= (a >> k & 1) << (8 * sizeof(T) - 1 - k);
    return r;
  }
};
template <class T>
struct Bfind {
  static uint32_t run(T a) {
    using U = std::make_unsigned_t<T>;
    U u = static_cast<U>(a);
    if (std::is_signed_v<T> && a < 0) u = static_cast<U>(~u);
    return u == 0 ? kNone : 8 * sizeof(T) - 1 - Clz<U>::run(u);
  }
};
template <class T>
struct BfindShift {
  static uint32_t run(T a) {
    uint32_t p = Bfind<T>::run(a);
    return p == kNone ? kNone : 8 * sizeof(T) - 1 - p;
  }
};
// bfe a, position, length: bits past the top repeat the sign (signed) or are 0.
template <class T>
struct Bfe {
  static T run(T a, uint32_t position, uint32_t length) {
    using U = std::make_unsigned_t<T>;
    constexpr uint32_t kBits = 8 * sizeof(T);
    position &= 0xff;
    length &= 0xff;
    U u = static_cast<U>(a);
    uint32_t top = std::min(position + length - 1, kBits - 1);
    bool sign = std::is_signed_v<T> && length != 0 && (u >> top & 1);
    U r = 0;
    for (uint32_t k = 0; k < kBits; ++k) {
      bool bit = k < length && position + k < kBits ? (u >> (position + k) & 1) : sign;
      r |= static_cast<U>(bit) << k;
    }
    return static_cast<T>(r);
  }
};

template <class T>
void run_bfi(Warp& w, const Instr& in, uint32_t mask) {  // d, a (field), b (into), position, length
  using S = typename Rep<T>::S;
  const S *a = w.in<S>(in.op[1]), *b = w.in<S>(in.op[2]);
  const uint32_t *p = w.in<uint32_t>(in.op[3]), *n = w.in<uint32_t>(in.op[4]);
  S out[kLanes];
  constexpr uint32_t kBits = 8 * sizeof(T);
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t position = p[l] & 0xff, length = n[l] & 0xff;
    S r = b[l];
    for (uint32_t k = 0; k < length && position + k < kBits; ++k) {
      S bit = static_cast<S>(1) << (position + k);
      r = (a[l] >> k & 1) ? (r | bit) : (r & ~bit);
    }
    out[l] = r;
  }
  commit(w, in.op[0], out, mask);
}

void run_lop3(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[1]), *b = w.in<uint32_t>(in.op[2]), *c = w.in<uint32_t>(in.op[3]);
  uint32_t table = static_cast<uint32_t>(in.imm);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = 0;
  for (uint32_t t = 0; t < 8; ++t) {
    if (!(table >> t & 1)) continue;
    uint32_t x = t & 4 ? 0 : kFullMask, y = t & 2 ? 0 : kFullMask, z = t & 1 ? 0 : kFullMask;
    for (uint32_t l = 0; l < kLanes; ++l) out[l] |= (a[l] ^ x) & (b[l] ^ y) & (c[l] ^ z);
  }
  commit(w, in.op[0], out, mask);
}

// mode: bit 0 right, bit 1 clamp.
void run_shf(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[1]), *b = w.in<uint32_t>(in.op[2]), *c = w.in<uint32_t>(in.op[3]);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t n = in.mode & 2 ? std::min(c[l], 32u) : c[l] & 31;
    uint64_t both = static_cast<uint64_t>(b[l]) << 32 | a[l];
    out[l] = static_cast<uint32_t>(in.mode & 1 ? both >> n : both << n >> 32);
  }
  commit(w, in.op[0], out, mask);
}

enum PrmtMode : uint8_t { kPlain, kF4e, kB4e, kRc8, kEcl, kEcr, kRc16 };

uint32_t prmt(uint32_t a, uint32_t b, uint32_t c, uint8_t mode) {
  uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t r = 0;
  for (uint32_t k = 0; k < 4; ++k) {
    uint32_t s = c & 3, pick = 0, sign = 0;
    switch (mode) {
      case kPlain:
        pick = c >> (4 * k) & 7, sign = c >> (4 * k + 3) & 1;
        break;
      case kF4e:
        pick = s + k;
        break;
      case kB4e:
        pick = (s + 8 - k) & 7;
        break;
      case kRc8:
        pick = s;
        break;
      case kEcl:
        pick = std::max(k, s);
        break;
      case kEcr:
        pick = std::min(k, s);
        break;
      case kRc16:
        pick = (c & 1) * 2 + (k & 1);
        break;
    }
    uint32_t byte = both >> (8 * pick) & 0xff;
    if (sign) byte = byte & 0x80 ? 0xff : 0;
    r |= byte << (8 * k);
  }
  return r;
}

void run_prmt(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[1]), *b = w.in<uint32_t>(in.op[2]), *c = w.in<uint32_t>(in.op[3]);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = prmt(a[l], b[l], c[l], in.mode);
  commit(w, in.op[0], out, mask);
}

// mode: bit 0 a signed, bit 1 b signed, bit 2 dp2a, bit 3 the upper half of b (dp2a.hi).
void run_dp4a(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[1]), *b = w.in<uint32_t>(in.op[2]), *c = w.in<uint32_t>(in.op[3]);
  uint32_t out[kLanes];
  auto byte = [](uint32_t v, uint32_t k, bool sign) {
    uint32_t x = v >> (8 * k) & 0xff;
    return sign ? static_cast<int32_t>(static_cast<int8_t>(x)) : static_cast<int32_t>(x);
  };
  auto half = [](uint32_t v, uint32_t k, bool sign) {
    uint32_t x = v >> (16 * k) & 0xffff;
    return sign ? static_cast<int32_t>(static_cast<int16_t>(x)) : static_cast<int32_t>(x);
  };
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t sum = c[l];
    if (in.mode & 4) {
      for (uint32_t k = 0; k < 2; ++k)
        sum += static_cast<uint32_t>(half(a[l], k, in.mode & 1) * byte(b[l], k + (in.mode & 8 ? 2 : 0), in.mode & 2));
    } else {
      for (uint32_t k = 0; k < 4; ++k)
        sum += static_cast<uint32_t>(byte(a[l], k, in.mode & 1) * byte(b[l], k, in.mode & 2));
    }
    out[l] = sum;
  }
  commit(w, in.op[0], out, mask);
}

void run_bmsk(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[1]), *b = w.in<uint32_t>(in.op[2]);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t position = in.mode ? std::min(a[l], 32u) : a[l] & 31, width = in.mode ? std::min(b[l], 32u) : b[l] & 31;
    uint64_t ones = (1ull << width) - 1;
    out[l] = static_cast<uint32_t>(ones << position);
  }
  commit(w, in.op[0], out, mask);
}

template <class T>
bool emit_count(Decoder& d, Handler fn, Ty t) {
  d.in.op[0] = d.destination(size_t{0}, Ty::kU32);
  d.in.op[1] = d.source(1, t);
  d.emit_as(fn);
  return true;
}

}  // namespace

bool decode_bits(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op == "lop3") {
    if (d.has("BoolOp") || d.has("or") || d.has("and")) d.fail("the boolean form is not supported");
    for (size_t k = 1; k <= 3; ++k) d.in.op[k] = d.source(k, Ty::kB32);
    d.in.op[0] = d.destination(size_t{0}, Ty::kB32);
    d.in.imm = d.immediate(d.argument(4));
    d.emit_as(run_lop3);
    return true;
  }
  if (op == "shf") {
    d.in.mode = static_cast<uint8_t>((d.has("r") ? 1 : 0) | (d.has("clamp") ? 2 : 0));
    return emit_uniform(d, run_shf, Ty::kB32, 3);
  }
  if (op == "prmt") {
    const char* names[] = {"", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    for (uint8_t k = 1; k < 7; ++k)
      if (d.has(names[k])) d.in.mode = k;
    return emit_uniform(d, run_prmt, Ty::kB32, 3);
  }
  if (op == "dp4a" || op == "dp2a") {
    std::vector<Ty> t = d.types();
    if (t.size() != 2) d.fail("two types are wanted");
    d.in.mode = static_cast<uint8_t>((is_signed(t[0]) ? 1 : 0) | (is_signed(t[1]) ? 2 : 0) | (op == "dp2a" ? 4 : 0) |
                                     (d.has("hi") ? 8 : 0));
    return emit_uniform(d, run_dp4a, Ty::kB32, 3);
  }
  if (op == "bmsk") {
    d.in.mode = d.has("clamp");
    return emit_uniform(d, run_bmsk, Ty::kB32, 2);
  }
  if (op != "popc" && op != "clz" && op != "brev" && op != "bfind" && op != "bfe" && op != "bfi") return false;
  Ty t = d.last_type();
  bool wide = bits_of(t) == 64;
  if (op == "popc")
    return emit_count<void>(d,
                            wide ? static_cast<Handler>(run_unary<Popc<uint64_t>, uint32_t, uint64_t>)
                                 : run_unary<Popc<uint32_t>, uint32_t, uint32_t>,
                            t);
  if (op == "clz")
    return emit_count<void>(d,
                            wide ? static_cast<Handler>(run_unary<Clz<uint64_t>, uint32_t, uint64_t>)
                                 : run_unary<Clz<uint32_t>, uint32_t, uint32_t>,
                            t);
  if (op == "brev")
    return emit_uniform(d,
                        wide ? static_cast<Handler>(run_unary<Brev<uint64_t>, uint64_t, uint64_t>)
                             : run_unary<Brev<uint32_t>, uint32_t, uint32_t>,
                        t, 1);
  if (op == "bfind") {
    Handler fn = nullptr;
    bool shift = d.has("shiftamt");
#define VCUDA_CASE(T)                                                      \
  fn = shift ? static_cast<Handler>(run_unary<BfindShift<T>, uint32_t, T>) \
             : static_cast<Handler>(run_unary<Bfind<T>, uint32_t, T>);     \
  break
    VCUDA_INTEGER_TYPES(t, VCUDA_CASE)
#undef VCUDA_CASE
    return emit_count<void>(d, fn, t);
  }
  d.in.op[0] = d.destination(size_t{0}, t);
  if (op == "bfe") {
    d.in.op[1] = d.source(1, t);
    d.in.op[2] = d.source(2, Ty::kU32);
    d.in.op[3] = d.source(3, Ty::kU32);
    Handler fn = nullptr;
#define VCUDA_CASE(T)                                 \
  fn = run_ternary<Bfe<T>, T, T, uint32_t, uint32_t>; \
  break
    VCUDA_INTEGER_TYPES(t, VCUDA_CASE)
#undef VCUDA_CASE
    d.emit_as(fn);
    return true;
  }
  d.in.op[1] = d.source(1, t);
  d.in.op[2] = d.source(2, t);
  d.in.op[3] = d.source(3, Ty::kU32);
  d.in.op[4] = d.source(4, Ty::kU32);
  d.emit_as(wide ? run_bfi<uint64_t> : run_bfi<uint32_t>);
  return true;
}

}  // namespace kernelforge::vcuda
