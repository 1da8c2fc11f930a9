// f16, bf16 and their packed pairs: each operation exact in binary64 (rounded to odd), then rounded once.
#include "lane_ops.h"
#include "real.h"

namespace kernelforge::vcuda {
namespace {

enum Op : uint8_t { kAdd, kSub, kMul, kFma, kNeg, kAbs, kMin, kMax };
constexpr int64_t kBf16 = 1, kPair = 2, kRelu = 4, kNan = 8, kSat = 16;

uint32_t one(uint8_t op, int64_t mode, uint32_t a, uint32_t b, uint32_t c) {
  bool bf = mode & kBf16;
  if (op == kNeg) return a ^ 0x8000u;
  if (op == kAbs) return a & 0x7fffu;
  auto decode = [bf](uint32_t v) { return static_cast<double>(bf ? bf16_to_float(v) : half_to_float(v)); };
  double x = decode(a), y = decode(b), z = decode(c), r = 0;
  uint32_t nan = 0x7fff;
  switch (op) {
    case kAdd:
      r = add_odd(x, y);
      break;
    case kSub:
      r = add_odd(x, -y);
      break;
    case kMul:
      r = x * y;
      break;
    case kFma:
      r = add_odd(x * y, z);
      break;
    case kMin:
    case kMax: {
      bool na = x != x, nb = y != y;
      if (na || nb) return (na && nb) || (mode & kNan) ? nan : na ? b : a;
      if (x == 0 && y == 0) return op == kMax ? (a & b) : (a | b);
      return (op == kMax ? x > y : x < y) ? a : b;
    }
    default:
      break;
  }
  if (mode & kSat) r = r != r ? 0 : r < 0 ? 0 : r > 1 ? 1 : r;
  if ((mode & kRelu) && !(r > 0) && r == r) r = 0;
  return (bf ? kBfloat : kHalf).encode(r, Round::kNearest, false);
}

void run_half(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t* a = w.in<uint32_t>(in.op[1]);
  const uint32_t* b = in.op[2] == kNone ? a : w.in<uint32_t>(in.op[2]);
  const uint32_t* c = in.op[3] == kNone ? a : w.in<uint32_t>(in.op[3]);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    out[l] = one(in.mode, in.imm, a[l] & 0xffff, b[l] & 0xffff, c[l] & 0xffff);
    if (in.imm & kPair) out[l] |= one(in.mode, in.imm, a[l] >> 16, b[l] >> 16, c[l] >> 16) << 16;
  }
  commit(w, in.op[0], out, mask);
}

}  // namespace

bool decode_half(Decoder& d) {
  std::vector<Ty> types = d.types();
  if (types.empty()) return false;
  Ty t = types.back();
  bool bf = t == Ty::kBF16 || t == Ty::kBF16x2, pair = t == Ty::kF16x2 || t == Ty::kBF16x2;
  if (!bf && !pair && t != Ty::kF16) return false;
  struct Name {
    const char* name;
    uint8_t op;
    int operands;
  };
  for (const Name& n : {Name{"add", kAdd, 2}, Name{"sub", kSub, 2}, Name{"mul", kMul, 2}, Name{"fma", kFma, 3},
                        Name{"neg", kNeg, 1}, Name{"abs", kAbs, 1}, Name{"min", kMin, 2}, Name{"max", kMax, 2}}) {
    if (d.mods[0] != n.name) continue;
    if (d.has("ftz")) d.fail("ftz is not supported for 16-bit floats");
    d.in.mode = n.op;
    d.in.imm = (bf ? kBf16 : 0) | (pair ? kPair : 0) | (d.has("relu") ? kRelu : 0) | (d.has("NaN") ? kNan : 0) |
               (d.has("sat") ? kSat : 0);
    return emit_uniform(d, run_half, pair ? Ty::kB32 : Ty::kB16, n.operands);
  }
  return false;
}

}  // namespace kernelforge::vcuda
