// Predicates: setp, set, selp, slct and logic on predicates.
#include "lane_ops.h"
#include "real.h"

namespace kernelforge::vcuda {
namespace {

enum Cmp : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan };
enum Bool : uint8_t { kNoBool, kAnd, kOr, kXor };

template <class T>
bool compare(uint8_t c, T a, T b) {
  bool unordered = a != a || b != b;
  switch (c) {
    case kEq:
      return a == b;
    case kNe:
      return a != b && !unordered;
    case kLt:
      return a < b;
    case kLe:
      return a <= b;
    case kGt:
      return a > b;
    case kGe:
      return a >= b;
    case kEqu:
      return unordered || a == b;
    case kNeu:
      return unordered || a != b;
    case kLtu:
      return unordered || a < b;
    case kLeu:
      return unordered || a <= b;
    case kGtu:
      return unordered || a > b;
    case kGeu:
      return unordered || a >= b;
    case kNum:
      return !unordered;
    case kNan:
      return unordered;
  }
  return false;
}

template <class T>
uint32_t compare_all(uint8_t c, const typename Rep<T>::S* a, const typename Rep<T>::S* b, bool ftz) {
  uint32_t out = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    T x = Rep<T>::get(a[l]), y = Rep<T>::get(b[l]);
    if constexpr (std::is_same_v<T, float>) {
      if (ftz) x = flush(x), y = flush(y);
    }
    out |= static_cast<uint32_t>(compare<T>(c, x, y)) << l;
  }
  return out;
}

// mode: comparison; imm: bits 0-1 boolean, bit 2 ftz, bits 3-4: 16-bit float (1 f16, 2 bf16).
template <class T>
uint32_t evaluate(Warp& w, const Instr& in) {
  if constexpr (std::is_same_v<T, uint16_t>) {
    if (int kind = static_cast<int>(in.imm >> 3 & 3)) {
      const uint32_t *a = w.in<uint32_t>(in.op[2]), *b = w.in<uint32_t>(in.op[3]);
      uint32_t x[kLanes], y[kLanes];
      for (uint32_t l = 0; l < kLanes; ++l) {
        x[l] = bits_of_float(kind == 1 ? half_to_float(a[l] & 0xffff) : bf16_to_float(a[l] & 0xffff));
        y[l] = bits_of_float(kind == 1 ? half_to_float(b[l] & 0xffff) : bf16_to_float(b[l] & 0xffff));
      }
      return compare_all<float>(in.mode, x, y, false);
    }
  }
  using S = typename Rep<T>::S;
  return compare_all<T>(in.mode, w.in<S>(in.op[2]), w.in<S>(in.op[3]), in.imm & 4);
}

uint32_t combine(Warp& w, const Instr& in, uint32_t value) {
  switch (in.imm & 3) {
    case kAnd:
      return value & w.predicate(in.op[4]);
    case kOr:
      return value | w.predicate(in.op[4]);
    case kXor:
      return value ^ w.predicate(in.op[4]);
    default:
      return value;
  }
}

template <class T>
void run_setp(Warp& w, const Instr& in, uint32_t mask) {
  uint32_t r = evaluate<T>(w, in), first = combine(w, in, r), second = in.op[1] == kNone ? 0 : combine(w, in, ~r);
  w.set_predicate(in.op[0], first, mask);
  w.set_predicate(in.op[1], second, mask);
}

// set.<cmp>.<d>.<a>: all ones (integer d) or 1.0 (f32 d).
template <class T>
void run_set(Warp& w, const Instr& in, uint32_t mask) {
  uint32_t r = combine(w, in, evaluate<T>(w, in)), yes = in.imm & 32 ? 0x3f800000u : kFullMask;
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = r >> l & 1 ? yes : 0;
  commit(w, in.op[0], out, mask);
}

template <class S>
void run_selp(Warp& w, const Instr& in, uint32_t mask) {
  const S *a = w.in<S>(in.op[1]), *b = w.in<S>(in.op[2]);
  uint32_t p = w.predicate(in.op[3]);
  S out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = p >> l & 1 ? a[l] : b[l];
  commit(w, in.op[0], out, mask);
}

// slct d, a, b, c: a where c >= 0 (mode 1: c is a float; NaN selects b; -0 counts as 0).
template <class S>
void run_slct(Warp& w, const Instr& in, uint32_t mask) {
  const S *a = w.in<S>(in.op[1]), *b = w.in<S>(in.op[2]);
  const uint32_t* c = w.in<uint32_t>(in.op[3]);
  S out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    bool first = in.mode ? float_of_bits(c[l]) >= 0.0f : static_cast<int32_t>(c[l]) >= 0;
    out[l] = first ? a[l] : b[l];
  }
  commit(w, in.op[0], out, mask);
}

enum Logic : uint8_t { kLogicAnd, kLogicOr, kLogicXor, kLogicNot, kLogicMov };

void run_logic(Warp& w, const Instr& in, uint32_t mask) {
  uint32_t a = w.predicate(in.op[1]), r = a;
  switch (in.mode) {
    case kLogicAnd:
      r = a & w.predicate(in.op[2]);
      break;
    case kLogicOr:
      r = a | w.predicate(in.op[2]);
      break;
    case kLogicXor:
      r = a ^ w.predicate(in.op[2]);
      break;
    case kLogicNot:
      r = ~a;
      break;
  }
  w.set_predicate(in.op[0], r, mask);
}

int comparison(const Decoder& d, Ty t) {
  const char* names[] = {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
  for (int k = 0; k < 14; ++k)
    if (d.has(names[k])) return k;
  if (!is_float(t)) {  // unsigned spellings
    const char* lower[] = {"lo", "ls", "hi", "hs"};
    const int as[] = {kLt, kLe, kGt, kGe};
    for (int k = 0; k < 4; ++k)
      if (d.has(lower[k])) return as[k];
  }
  d.fail("comparison not supported");
}

Handler setp_handler(Ty t, bool set) {
#define VCUDA_PICK(T) set ? static_cast<Handler>(run_set<T>) : static_cast<Handler>(run_setp<T>)
  switch (t) {
    case Ty::kF16:
    case Ty::kBF16:
    case Ty::kU16:
    case Ty::kB16:
      return VCUDA_PICK(uint16_t);
    case Ty::kS16:
      return VCUDA_PICK(int16_t);
    case Ty::kU32:
    case Ty::kB32:
      return VCUDA_PICK(uint32_t);
    case Ty::kS32:
      return VCUDA_PICK(int32_t);
    case Ty::kU64:
    case Ty::kB64:
      return VCUDA_PICK(uint64_t);
    case Ty::kS64:
      return VCUDA_PICK(int64_t);
    case Ty::kF32:
      return VCUDA_PICK(float);
    case Ty::kF64:
      return VCUDA_PICK(double);
    default:
      return nullptr;
  }
#undef VCUDA_PICK
}

}  // namespace

bool decode_compare(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op == "setp" || op == "set") {
    Ty t = d.last_type();
    Handler fn = setp_handler(t, op == "set");
    if (!fn) d.fail("type not supported");
    d.in.mode = static_cast<uint8_t>(comparison(d, t));
    bool logic = d.has("and") || d.has("or") || d.has("xor");
    d.in.imm = (d.has("and")   ? kAnd
                : d.has("or")  ? kOr
                : d.has("xor") ? kXor
                               : kNoBool) |
               (d.has("ftz") ? 4 : 0) |
               (t == Ty::kF16    ? 8
                : t == Ty::kBF16 ? 16
                                 : 0);
    if (op == "set") {
      if (d.types().front() == Ty::kF32) d.in.imm |= 32;
      d.in.op[0] = d.destination(size_t{0}, Ty::kB32);
    } else {
      std::string dst = d.argument(0);
      size_t bar = dst.find('|');
      d.in.op[0] = d.predicate_destination(trim(dst.substr(0, bar)));
      if (bar != std::string::npos) d.in.op[1] = d.predicate_destination(trim(dst.substr(bar + 1)));
    }
    d.in.op[2] = d.source(1, t);
    d.in.op[3] = d.source(2, t);
    if (logic) d.in.op[4] = d.predicate_source(d.argument(3));
    d.emit_as(fn);
    return true;
  }
  if (op == "selp") {
    Ty t = d.last_type();
    d.in.op[0] = d.destination(size_t{0}, t);
    d.in.op[1] = d.source(1, t);
    d.in.op[2] = d.source(2, t);
    d.in.op[3] = d.predicate_source(d.argument(3));
    d.emit_as(bits_of(t) == 64 ? run_selp<uint64_t> : run_selp<uint32_t>);
    return true;
  }
  if (op == "slct") {
    std::vector<Ty> t = d.types();
    if (t.size() != 2) d.fail("two types are wanted");
    d.in.mode = t[1] == Ty::kF32;
    d.in.op[0] = d.destination(size_t{0}, t[0]);
    d.in.op[1] = d.source(1, t[0]);
    d.in.op[2] = d.source(2, t[0]);
    d.in.op[3] = d.source(3, Ty::kB32);
    d.emit_as(bits_of(t[0]) == 64 ? run_slct<uint64_t> : run_slct<uint32_t>);
    return true;
  }
  if (!d.has("pred")) return false;
  const char* names[] = {"and", "or", "xor", "not", "mov"};
  for (uint8_t k = 0; k < 5; ++k) {
    if (op != names[k]) continue;
    d.in.mode = k;
    d.in.op[0] = d.predicate_destination(d.argument(0));
    d.in.op[1] = d.predicate_source(d.argument(1));
    if (k < 3) d.in.op[2] = d.predicate_source(d.argument(2));
    d.emit_as(run_logic);
    return true;
  }
  return false;
}

}  // namespace kernelforge::vcuda
