// Integer arithmetic and logic.
#include <algorithm>
#include <limits>

#include "lane_ops.h"

namespace kernelforge::vcuda {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
// Wrapping arithmetic: uint16_t would promote to int and overflow, so everything runs at 32 bits or more.
template <class T>
using Wide = std::conditional_t<sizeof(T) < 4, uint32_t, Unsigned<T>>;

template <class T>
struct Add {
  static T run(T a, T b) { return static_cast<T>(static_cast<Wide<T>>(a) + static_cast<Wide<T>>(b)); }
};
template <class T>
struct Sub {
  static T run(T a, T b) { return static_cast<T>(static_cast<Wide<T>>(a) - static_cast<Wide<T>>(b)); }
};
template <class T>
struct MulLo {
  static T run(T a, T b) { return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b)); }
};
template <class T>
struct MadLo {
  static T run(T a, T b, T c) { return Add<T>::run(MulLo<T>::run(a, b), c); }
};
template <class T>
struct MulHi {
  static T run(T a, T b) {
    using P = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>((static_cast<P>(a) * static_cast<P>(b)) >> (8 * sizeof(T)));
  }
};
template <class T>
struct MadHi {
  static T run(T a, T b, T c) { return Add<T>::run(MulHi<T>::run(a, b), c); }
};
template <class T>
struct Min {
  static T run(T a, T b) { return a < b ? a : b; }
};
template <class T>
struct Max {
  static T run(T a, T b) { return a > b ? a : b; }
};
template <class T>
struct And {
  static T run(T a, T b) { return a & b; }
};
template <class T>
struct Or {
  static T run(T a, T b) { return a | b; }
};
template <class T>
struct Xor {
  static T run(T a, T b) { return a ^ b; }
};
template <class T>
struct Not {
  static T run(T a) { return static_cast<T>(~a); }
};
template <class T>
struct Cnot {
  static T run(T a) { return a == 0; }
};
template <class T>
struct Neg {
  static T run(T a) { return static_cast<T>(Wide<T>{0} - static_cast<Wide<T>>(a)); }
};
template <class T>
struct Abs {
  static T run(T a) { return a < 0 ? Neg<T>::run(a) : a; }
};
// Division by zero has no defined result; the device gives all ones.
template <class T>
struct Div {
  static T run(T a, T b) {
    if (b == 0) return static_cast<T>(~T{0});
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Neg<T>::run(a);
    return static_cast<T>(a / b);
  }
};
template <class T>
struct Rem {
  static T run(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
template <class T>
struct Sad {
  static T run(T a, T b, T c) { return Add<T>::run(c, a < b ? Sub<T>::run(b, a) : Sub<T>::run(a, b)); }
};
template <class T>
struct Shl {
  static T run(T a, uint32_t n) { return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<Wide<T>>(a) << n); }
};
template <class T>
struct Shr {
  static T run(T a, uint32_t n) {
    constexpr uint32_t kBits = 8 * sizeof(T);
    if (std::is_signed_v<T>) return static_cast<T>(a >> std::min(n, kBits - 1));
    return n >= kBits ? T{0} : static_cast<T>(a >> n);
  }
};
template <class T>
struct AddSat {
  static T run(T a, T b) {
    int64_t s = static_cast<int64_t>(a) + b;
    return static_cast<T>(std::clamp<int64_t>(s, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  }
};
template <class T>
struct SubSat {
  static T run(T a, T b) {
    int64_t s = static_cast<int64_t>(a) - b;
    return static_cast<T>(std::clamp<int64_t>(s, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  }
};
template <class T, class D>
struct MulWide {
  static D run(T a, T b) {
    return static_cast<D>(static_cast<Unsigned<D>>(static_cast<D>(a)) * static_cast<Unsigned<D>>(static_cast<D>(b)));
  }
};
template <class T, class D>
struct MadWide {
  static D run(T a, T b, D c) { return Add<D>::run(MulWide<T, D>::run(a, b), c); }
};

template <class T>
void run_shl(Warp& w, const Instr& in, uint32_t mask) {
  run_binary<Shl<T>, T, T, uint32_t>(w, in, mask);
}
template <class T>
void run_shr(Warp& w, const Instr& in, uint32_t mask) {
  run_binary<Shr<T>, T, T, uint32_t>(w, in, mask);
}

template <class T, class D>
Handler wide(bool mad) {
  return mad ? static_cast<Handler>(run_ternary<MadWide<T, D>, D, T, T, D>)
             : static_cast<Handler>(run_binary<MulWide<T, D>, D, T>);
}

// add.cc, addc, sub.cc, subc: the carry flag is one bit per lane. mode: bit 0 subtract, 1 carry in, 2 carry out.
template <class T>
void run_carry(Warp& w, const Instr& in, uint32_t mask) {
  using S = typename Rep<T>::S;
  const S* a = w.in<S>(in.op[1]);
  const S* b = w.in<S>(in.op[2]);
  S out[kLanes];
  uint32_t carry = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    unsigned __int128 x = a[l], y = b[l];
    uint32_t c = in.mode & 2 ? w.carry >> l & 1 : 0;
    constexpr uint32_t kBits = 8 * sizeof(T);
    unsigned __int128 r = in.mode & 1 ? x - y - c : x + y + c;
    out[l] = static_cast<S>(r);
    carry |= static_cast<uint32_t>(r >> kBits & 1) << l;
  }
  commit(w, in.op[0], out, mask);
  if (in.mode & 4) w.carry = (w.carry & ~mask) | (carry & mask);
}

bool decode_carry(Decoder& d) {
  const std::string& op = d.mods[0];
  bool cc = d.has("cc");
  bool in_carry = op == "addc" || op == "subc";
  if (!cc && !in_carry) return false;
  if (op != "add" && op != "sub" && !in_carry) return false;
  Ty t = d.last_type();
  d.in.mode = static_cast<uint8_t>((op[0] == 's' ? 1 : 0) | (in_carry ? 2 : 0) | (cc ? 4 : 0));
  return emit_uniform(d, bits_of(t) == 64 ? run_carry<uint64_t> : run_carry<uint32_t>, t, 2);
}

bool decode_multiply(Decoder& d) {
  bool mad = d.mods[0] == "mad";
  Ty t = d.last_type();
  if (d.has("lo")) return emit_uniform(d, mad ? ternary_integer<MadLo>(t) : binary_integer<MulLo>(t), t, mad ? 3 : 2);
  if (d.has("hi")) return emit_uniform(d, mad ? ternary_integer<MadHi>(t) : binary_integer<MulHi>(t), t, mad ? 3 : 2);
  if (!d.has("wide")) return false;
  Ty result;
  Handler fn;
  switch (t) {
    case Ty::kU16:
      result = Ty::kU32, fn = wide<uint16_t, uint32_t>(mad);
      break;
    case Ty::kS16:
      result = Ty::kS32, fn = wide<int16_t, int32_t>(mad);
      break;
    case Ty::kU32:
      result = Ty::kU64, fn = wide<uint32_t, uint64_t>(mad);
      break;
    case Ty::kS32:
      result = Ty::kS64, fn = wide<int32_t, int64_t>(mad);
      break;
    default:
      d.fail("type not supported");
  }
  d.in.op[0] = d.destination(size_t{0}, result);
  d.in.op[1] = d.source(1, t);
  d.in.op[2] = d.source(2, t);
  if (mad) d.in.op[3] = d.source(3, result);
  d.emit_as(fn);
  return true;
}

}  // namespace

bool decode_integer(Decoder& d) {
  const std::string& op = d.mods[0];
  std::vector<Ty> types = d.types();
  if (types.empty() || is_float(types.back()) || types.back() == Ty::kPred) return false;
  Ty t = types.back();
  if (decode_carry(d)) return true;
  if (op == "mul" || op == "mad") return decode_multiply(d);
  if (op == "add" && d.has("sat")) return emit_uniform(d, run_binary<AddSat<int32_t>, int32_t, int32_t>, t, 2);
  if (op == "sub" && d.has("sat")) return emit_uniform(d, run_binary<SubSat<int32_t>, int32_t, int32_t>, t, 2);
  if (op == "add") return emit_uniform(d, binary_integer<Add>(t), t, 2);
  if (op == "sub") return emit_uniform(d, binary_integer<Sub>(t), t, 2);
  if (op == "div") return emit_uniform(d, binary_integer<Div>(t), t, 2);
  if (op == "rem") return emit_uniform(d, binary_integer<Rem>(t), t, 2);
  if (op == "min") return emit_uniform(d, binary_integer<Min>(t), t, 2);
  if (op == "max") return emit_uniform(d, binary_integer<Max>(t), t, 2);
  if (op == "sad") return emit_uniform(d, ternary_integer<Sad>(t), t, 3);
  if (op == "and") return emit_uniform(d, binary_integer<And>(t), t, 2);
  if (op == "or") return emit_uniform(d, binary_integer<Or>(t), t, 2);
  if (op == "xor") return emit_uniform(d, binary_integer<Xor>(t), t, 2);
  if (op == "not") return emit_uniform(d, unary_integer<Not>(t), t, 1);
  if (op == "cnot") return emit_uniform(d, unary_integer<Cnot>(t), t, 1);
  if (op == "neg") return emit_uniform(d, unary_integer<Neg>(t), t, 1);
  if (op == "abs") return emit_uniform(d, unary_integer<Abs>(t), t, 1);
  if (op == "shl" || op == "shr") {
    Handler fn = nullptr;
    if (op == "shl") {
#define VCUDA_CASE(T) \
  fn = run_shl<T>;    \
  break
      VCUDA_INTEGER_TYPES(t, VCUDA_CASE)
#undef VCUDA_CASE
    } else {
#define VCUDA_CASE(T) \
  fn = run_shr<T>;    \
  break
      VCUDA_INTEGER_TYPES(t, VCUDA_CASE)
#undef VCUDA_CASE
    }
    if (!fn) d.fail("type not supported");
    d.in.op[0] = d.destination(size_t{0}, t);
    d.in.op[1] = d.source(1, t);
    d.in.op[2] = d.source(2, Ty::kU32);
    d.emit_as(fn);
    return true;
  }
  return false;
}

}  // namespace kernelforge::vcuda
