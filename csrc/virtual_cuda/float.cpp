// binary32 and binary64 arithmetic, IEEE, with and without flush-to-zero.
#include "lane_ops.h"
#include "real.h"

namespace kernelforge::vcuda {
namespace {

struct AddF {
  static float run(float a, float b) { return canonical(a + b); }
};
struct SubF {
  static float run(float a, float b) { return canonical(a - b); }
};
struct MulF {
  static float run(float a, float b) { return canonical(a * b); }
};
struct AddD {
  static double run(double a, double b) { return a + b; }
};
struct SubD {
  static double run(double a, double b) { return a - b; }
};
struct MulD {
  static double run(double a, double b) { return a * b; }
};
struct DivD {
  static double run(double a, double b) { return a / b; }
};
struct FmaD {
  static double run(double a, double b, double c) { return std::fma(a, b, c); }
};
struct SqrtD {
  static double run(double a) { return std::sqrt(a); }
};
struct RcpD {
  static double run(double a) { return 1.0 / a; }
};
struct MinD {
  static double run(double a, double b) { return std::fmin(a, b); }
};
struct MaxD {
  static double run(double a, double b) { return std::fmax(a, b); }
};
struct NegF {
  static uint32_t run(uint32_t a) { return a ^ 0x80000000u; }
};
struct AbsF {
  static uint32_t run(uint32_t a) { return a & 0x7fffffffu; }
};
struct NegD {
  static uint64_t run(uint64_t a) { return a ^ 0x8000000000000000ull; }
};
struct AbsD {
  static uint64_t run(uint64_t a) { return a & 0x7fffffffffffffffull; }
};
struct CopySignF {  // copysign d, a, b: the sign of a, the magnitude of b
  static uint32_t run(uint32_t a, uint32_t b) { return (a & 0x80000000u) | (b & 0x7fffffffu); }
};

// The general fp32 path. Instr::mode: operation; Instr::imm: modifier bits.
enum Op : uint8_t { kAdd, kSub, kMul, kFma, kMin, kMax, kDiv, kRcp, kSqrt, kAbs, kNeg };
constexpr int64_t kFtz = 1, kSat = 2, kNan = 4, kXorSign = 8;

float minmax(float a, float b, bool max, bool nan) {
  if (a != a || b != b) {
    if ((a != a && b != b) || nan) return float_of_bits(kNan32);
    return a != a ? b : a;
  }
  if (a == 0 && b == 0) {  // -0 is below +0
    bool na = std::signbit(a), nb = std::signbit(b);
    return max ? (na ? b : a) : (nb ? b : a);
  }
  return max ? (a > b ? a : b) : (a < b ? a : b);
}

float general(uint8_t op, Round r, bool nan, float a, float b, float c) {
  switch (op) {
    case kAdd:
      return narrow(add_odd(a, b), r);
    case kSub:
      return narrow(add_odd(a, -static_cast<double>(b)), r);
    case kMul:
      return narrow(static_cast<double>(a) * b, r);
    case kFma:
      return narrow(add_odd(static_cast<double>(a) * b, c), r);
    case kMin:
      return minmax(a, b, false, nan);
    case kMax:
      return minmax(a, b, true, nan);
    case kDiv:
      return a / b;
    case kRcp:
      return 1.0f / a;
    case kSqrt:
      return std::sqrt(a);
    case kAbs:
      return std::fabs(a);
    case kNeg:
      return -a;
  }
  return 0;
}

void run_general(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t* a = w.in<uint32_t>(in.op[1]);
  const uint32_t* b = in.op[2] == kNone ? a : w.in<uint32_t>(in.op[2]);
  const uint32_t* c = in.op[3] == kNone ? a : w.in<uint32_t>(in.op[3]);
  bool ftz = in.imm & kFtz;
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    float x = float_of_bits(a[l]), y = float_of_bits(b[l]), z = float_of_bits(c[l]);
    if (ftz) x = flush(x), y = flush(y), z = flush(z);
    float r = general(in.mode & 15, static_cast<Round>(in.mode >> 4), in.imm & kNan, x, y, z);
    r = canonical(r);
    if (ftz) r = flush(r);
    if (in.imm & kSat) r = r != r ? 0.0f : r < 0.0f ? 0.0f : r > 1.0f ? 1.0f : r == 0.0f ? 0.0f : r;
    out[l] = bits_of_float(r);
  }
  commit(w, in.op[0], out, mask);
}

// fma.rn: exact product and round-to-odd sum in binary64, so one rounding in the end.
struct FmaF {
  static float run(float a, float b, float c) {
    return canonical(static_cast<float>(add_odd(static_cast<double>(a) * static_cast<double>(b), c)));
  }
};

__attribute__((target("fma,avx2"))) void run_fma_hardware(Warp& w, const Instr& in, uint32_t mask) {
  const float *a = w.in<float>(in.op[1]), *b = w.in<float>(in.op[2]), *c = w.in<float>(in.op[3]);
  alignas(64) float out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = __builtin_fmaf(a[l], b[l], c[l]);
  alignas(64) uint32_t bits[kLanes];
  std::memcpy(bits, out, sizeof(out));
  for (uint32_t l = 0; l < kLanes; ++l) bits[l] = (bits[l] & 0x7fffffffu) > 0x7f800000u ? kNan32 : bits[l];
  commit(w, in.op[0], bits, mask);
}

// testp.<class>: predicate of the class of a float.
void run_testp(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t* a = w.in<uint32_t>(in.op[1]);
  uint32_t out = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t m = a[l] & 0x7fffffffu;
    bool r = false;
    switch (in.mode) {
      case 0:
        r = m < 0x7f800000u;
        break;
      case 1:
        r = m == 0x7f800000u;
        break;
      case 2:
        r = m <= 0x7f800000u;
        break;
      case 3:
        r = m > 0x7f800000u;
        break;
      case 4:
        r = m >= 0x00800000u && m < 0x7f800000u;
        break;
      case 5:
        r = m != 0 && m < 0x00800000u;
        break;
    }
    out |= static_cast<uint32_t>(r) << l;
  }
  w.set_predicate(in.op[0], out, mask);
}

Round rounding(const Decoder& d) {
  return d.has("rz") ? Round::kZero : d.has("rm") ? Round::kDown : d.has("rp") ? Round::kUp : Round::kNearest;
}

}  // namespace

bool decode_float(Decoder& d) {
  const std::string& op = d.mods[0];
  for (const char* name : {"ex2", "lg2", "sin", "cos", "tanh", "rsqrt"})
    if (op == name) d.fail("its result is an approximation whose bits no specification gives; exact mode has none");
  std::vector<Ty> types = d.types();
  if (types.empty()) return false;
  Ty t = types.back();
  if (t != Ty::kF32 && t != Ty::kF64) return false;
  if (op == "testp") {
    const char* names[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    if (t != Ty::kF32) d.fail("only f32");
    for (uint8_t k = 0; k < 6; ++k)
      if (d.has(names[k])) d.in.mode = k;
    d.in.op[0] = d.predicate_destination(d.argument(0));
    d.in.op[1] = d.source(1, t);
    d.emit_as(run_testp);
    return true;
  }
  if ((op == "div" || op == "rcp" || op == "sqrt") && (d.has("approx") || d.has("full")))
    d.fail("its result is an approximation whose bits no specification gives; exact mode has none");
  if (t == Ty::kF64) {
    if (rounding(d) != Round::kNearest) d.fail("only round-to-nearest for f64");
    if (op == "add") return emit_uniform(d, run_binary<AddD, double, double>, t, 2);
    if (op == "sub") return emit_uniform(d, run_binary<SubD, double, double>, t, 2);
    if (op == "mul") return emit_uniform(d, run_binary<MulD, double, double>, t, 2);
    if (op == "div") return emit_uniform(d, run_binary<DivD, double, double>, t, 2);
    if (op == "fma" || op == "mad") return emit_uniform(d, run_ternary<FmaD, double, double>, t, 3);
    if (op == "min") return emit_uniform(d, run_binary<MinD, double, double>, t, 2);
    if (op == "max") return emit_uniform(d, run_binary<MaxD, double, double>, t, 2);
    if (op == "sqrt") return emit_uniform(d, run_unary<SqrtD, double, double>, t, 1);
    if (op == "rcp") return emit_uniform(d, run_unary<RcpD, double, double>, t, 1);
    if (op == "neg") return emit_uniform(d, run_unary<NegD, uint64_t, uint64_t>, t, 1);
    if (op == "abs") return emit_uniform(d, run_unary<AbsD, uint64_t, uint64_t>, t, 1);
    return false;
  }
  if (op == "copysign") return emit_uniform(d, run_binary<CopySignF, uint32_t, uint32_t>, t, 2);
  int64_t modifiers = (d.has("ftz") ? kFtz : 0) | (d.has("sat") ? kSat : 0) | (d.has("NaN") ? kNan : 0);
  if (d.has("xorsign")) d.fail("xorsign is not supported");
  Round r = rounding(d);
  bool plain = modifiers == 0 && r == Round::kNearest;
  if (plain) {
    if (op == "add") return emit_uniform(d, run_binary<AddF, float, float>, t, 2);
    if (op == "sub") return emit_uniform(d, run_binary<SubF, float, float>, t, 2);
    if (op == "mul") return emit_uniform(d, run_binary<MulF, float, float>, t, 2);
    if (op == "neg") return emit_uniform(d, run_unary<NegF, uint32_t, uint32_t>, t, 1);
    if (op == "abs") return emit_uniform(d, run_unary<AbsF, uint32_t, uint32_t>, t, 1);
    if (op == "fma" || op == "mad")
      return emit_uniform(d,
                          __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")
                              ? run_fma_hardware
                              : run_ternary<FmaF, float, float>,
                          t, 3);
  }
  struct Name {
    const char* name;
    uint8_t op;
    int operands;
  };
  for (const Name& n : {Name{"add", kAdd, 2}, Name{"sub", kSub, 2}, Name{"mul", kMul, 2}, Name{"fma", kFma, 3},
                        Name{"mad", kFma, 3}, Name{"min", kMin, 2}, Name{"max", kMax, 2}, Name{"div", kDiv, 2},
                        Name{"rcp", kRcp, 1}, Name{"sqrt", kSqrt, 1}, Name{"abs", kAbs, 1}, Name{"neg", kNeg, 1}}) {
    if (op != n.name) continue;
    if (r != Round::kNearest && n.op >= kMin) d.fail("only round-to-nearest");
    d.in.mode = static_cast<uint8_t>(n.op | static_cast<uint8_t>(r) << 4);
    d.in.imm = modifiers;
    return emit_uniform(d, run_general, t, n.operands);
  }
  return false;
}

}  // namespace kernelforge::vcuda
