// cvt in every form nvcc makes for these kernels, cvt.pack, szext.
#include <algorithm>

#include "lane_ops.h"
#include "real.h"

namespace kernelforge::vcuda {
namespace {

// Everything goes through one description; the frequent forms have their own loops below.
struct Form {
  Ty to, from;
  Round round = Round::kNearest;
  bool integral = false;  // .rni and its like: to an integral value
  bool saturate = false, ftz = false, relu = false;
};

uint32_t pack_form(const Form& f) {
  return static_cast<uint32_t>(f.to) | static_cast<uint32_t>(f.from) << 5 | static_cast<uint32_t>(f.round) << 10 |
         static_cast<uint32_t>(f.integral) << 13 | static_cast<uint32_t>(f.saturate) << 14 |
         static_cast<uint32_t>(f.ftz) << 15 | static_cast<uint32_t>(f.relu) << 16;
}
Form unpack_form(uint64_t v) {
  Form f;
  f.to = static_cast<Ty>(v & 31);
  f.from = static_cast<Ty>(v >> 5 & 31);
  f.round = static_cast<Round>(v >> 10 & 7);
  f.integral = v >> 13 & 1;
  f.saturate = v >> 14 & 1;
  f.ftz = v >> 15 & 1;
  f.relu = v >> 16 & 1;
  return f;
}

double round_integral(double x, Round r) {
  switch (r) {
    case Round::kZero:
      return std::trunc(x);
    case Round::kDown:
      return std::floor(x);
    case Round::kUp:
      return std::ceil(x);
    default:
      return std::nearbyint(x);
  }
}

void integer_range(Ty t, __int128& lo, __int128& hi) {
  uint32_t bits = bits_of(t);
  lo = is_signed(t) ? -(static_cast<__int128>(1) << (bits - 1)) : 0;
  hi = is_signed(t) ? (static_cast<__int128>(1) << (bits - 1)) - 1 : (static_cast<__int128>(1) << bits) - 1;
}

__int128 read_integer(uint64_t raw, Ty t) {
  uint32_t bits = bits_of(t);
  uint64_t v = bits == 64 ? raw : raw & ((1ull << bits) - 1);
  if (is_signed(t) && (v >> (bits - 1) & 1)) return static_cast<__int128>(v) - (static_cast<__int128>(1) << bits);
  return static_cast<__int128>(v);
}

// f32/f64/f16/bf16 destination from an exact binary64 value (or one that was rounded to odd).
uint64_t write_real(double x, const Form& f) {
  if (f.relu) x = x != x ? x : x > 0 ? x : 0.0;
  if (f.saturate && f.to != Ty::kE4M3x2 && f.to != Ty::kE5M2x2)
    x = x != x ? 0.0 : x < 0 ? 0.0 : x > 1 ? 1.0 : x == 0 ? 0.0 : x;
  switch (f.to) {
    case Ty::kF64:
      return bits_of_double(x);
    case Ty::kF32: {
      float v = canonical(narrow(x, f.round));
      return bits_of_float(f.ftz ? flush(v) : v);
    }
    case Ty::kF16:
      return kHalf.encode(x, f.round, false);
    case Ty::kBF16:
      return kBfloat.encode(x, f.round, false);
    default:
      return 0;
  }
}

uint64_t convert(uint64_t raw, const Form& f) {
  if (!is_float(f.from)) {
    __int128 v = read_integer(raw, f.from);
    if (!is_float(f.to)) {
      if (f.saturate) {
        __int128 lo, hi;
        integer_range(f.to, lo, hi);
        v = std::clamp(v, lo, hi);
      }
      return static_cast<uint64_t>(read_integer(static_cast<uint64_t>(v), f.to));
    }
    // 64-bit integers do not fit binary64: cut to 53 bits with the rest as a sticky bit.
    bool negative = v < 0;
    unsigned __int128 m = static_cast<unsigned __int128>(negative ? -v : v);
    int shift = 0;
    bool sticky = false;
    if (f.to != Ty::kF64) {
      while (m >> 53) {
        sticky |= static_cast<bool>(m & 1);
        m >>= 1;
        ++shift;
      }
      if (sticky) m |= 1;
    } else {
      return bits_of_double(negative ? -static_cast<double>(static_cast<uint64_t>(m))
                                     : static_cast<double>(static_cast<uint64_t>(m)));
    }
    double x = std::ldexp(static_cast<double>(static_cast<uint64_t>(m)), shift);
    return write_real(negative ? -x : x, f);
  }
  double x = 0;
  switch (f.from) {
    case Ty::kF32: {
      float v = float_of_bits(static_cast<uint32_t>(raw));
      x = f.ftz ? flush(v) : v;
      break;
    }
    case Ty::kF64:
      x = double_of_bits(raw);
      break;
    case Ty::kF16:
      x = half_to_float(raw & 0xffff);
      break;
    case Ty::kBF16:
      x = bf16_to_float(raw & 0xffff);
      break;
    default:
      break;
  }
  if (is_float(f.to)) {
    if (f.integral) x = round_integral(x, f.round);
    return write_real(x, f);
  }
  // To an integer: out of range gives the nearest bound, NaN gives 0 (64-bit: the top bit).
  if (x != x)
    return bits_of(f.to) == 64                            ? 0x8000000000000000ull
           : bits_of(f.from) == 64 && bits_of(f.to) == 32 ? 0x80000000ull
                                                          : 0;
  x = round_integral(x, f.round);
  __int128 lo, hi;
  integer_range(f.to, lo, hi);
  __int128 v = x <= static_cast<double>(lo) ? lo : x >= static_cast<double>(hi) ? hi : static_cast<__int128>(x);
  return static_cast<uint64_t>(v);
}

template <class D, class S>
void run_convert(Warp& w, const Instr& in, uint32_t mask) {
  const S* a = w.in<S>(in.op[1]);
  Form f = unpack_form(static_cast<uint64_t>(in.imm));
  D out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = static_cast<D>(convert(a[l], f));
  commit(w, in.op[0], out, mask);
}

// Two values into one register: cvt.rn.bf16x2.f32 d, a, b puts a in the upper half.
void run_convert_pair(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[1]), *b = w.in<uint32_t>(in.op[2]);
  Form f = unpack_form(static_cast<uint64_t>(in.imm));
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t part[2];
    for (int k = 0; k < 2; ++k) {
      double x;
      if (f.from == Ty::kF32) {
        x = float_of_bits(k ? a[l] : b[l]);
      } else {
        x = half_to_float(k ? a[l] >> 16 : a[l] & 0xffff);  // from f16x2, one register
      }
      if (f.relu && x == x && !(x > 0)) x = 0;
      switch (f.to) {
        case Ty::kF16:
          part[k] = kHalf.encode(x, f.round, f.saturate);
          break;
        case Ty::kBF16:
          part[k] = kBfloat.encode(x, f.round, f.saturate);
          break;
        case Ty::kE4M3x2:
          part[k] = kE4M3.encode(x, f.round, f.saturate);
          break;
        default:
          part[k] = kE5M2.encode(x, f.round, f.saturate);
          break;
      }
    }
    uint32_t bits = f.to == Ty::kE4M3x2 || f.to == Ty::kE5M2x2 ? 8 : 16;
    out[l] = part[1] << bits | part[0];
  }
  commit(w, in.op[0], out, mask);
}

// cvt.rn.f16x2.e4m3x2: both values are exact in f16.
void run_from_fp8(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t* a = w.in<uint32_t>(in.op[1]);
  const SmallFormat& format = in.mode ? kE5M2 : kE4M3;
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l)
    out[l] = kHalf.encode(format.decode(a[l] & 0xff), Round::kNearest, false) |
             kHalf.encode(format.decode(a[l] >> 8 & 0xff), Round::kNearest, false) << 16;
  commit(w, in.op[0], out, mask);
}

template <class A>
struct ToFloat {  // exact or rounded to nearest by the host's conversion
  static float run(A a) { return static_cast<float>(a); }
};
template <class D, class A>
struct Cast {
  static D run(A a) { return static_cast<D>(a); }
};
template <class D>
Handler cast_from(Ty from) {
  switch (from) {
    case Ty::kU8:
      return run_unary<Cast<D, uint8_t>, D, uint8_t>;
    case Ty::kS8:
      return run_unary<Cast<D, int8_t>, D, int8_t>;
    case Ty::kU16:
      return run_unary<Cast<D, uint16_t>, D, uint16_t>;
    case Ty::kS16:
      return run_unary<Cast<D, int16_t>, D, int16_t>;
    case Ty::kU32:
      return run_unary<Cast<D, uint32_t>, D, uint32_t>;
    case Ty::kS32:
      return run_unary<Cast<D, int32_t>, D, int32_t>;
    case Ty::kU64:
      return run_unary<Cast<D, uint64_t>, D, uint64_t>;
    case Ty::kS64:
      return run_unary<Cast<D, int64_t>, D, int64_t>;
    default:
      return nullptr;
  }
}
Handler cast(Ty to, Ty from) {
  switch (to) {
    case Ty::kU8:
      return cast_from<uint8_t>(from);
    case Ty::kS8:
      return cast_from<int8_t>(from);
    case Ty::kU16:
      return cast_from<uint16_t>(from);
    case Ty::kS16:
      return cast_from<int16_t>(from);
    case Ty::kU32:
      return cast_from<uint32_t>(from);
    case Ty::kS32:
      return cast_from<int32_t>(from);
    case Ty::kU64:
      return cast_from<uint64_t>(from);
    case Ty::kS64:
      return cast_from<int64_t>(from);
    default:
      return nullptr;
  }
}
struct ToBf16 {
  static uint32_t run(float a) { return float_to_bf16(a); }
};
struct FromBf16 {
  static uint32_t run(uint32_t a) {
    uint32_t u = a << 16;
    return (u & 0x7fffffffu) > 0x7f800000u ? kNan32 : u;
  }
};
struct FromHalf {
  static float run(uint32_t a) { return half_to_float(a & 0xffff); }
};

// cvt.pack.sat.<to>.s32[.b32] d, a, b[, c]: two saturated values, a above b, then the lower bits of c above them.
void run_cvt_pack(Warp& w, const Instr& in, uint32_t mask) {
  const int32_t *a = w.in<int32_t>(in.op[1]), *b = w.in<int32_t>(in.op[2]);
  const uint32_t* c = in.op[3] == kNone ? nullptr : w.in<uint32_t>(in.op[3]);
  Ty to = static_cast<Ty>(in.imm);
  uint32_t bits = bits_of(to);
  __int128 lo, hi;
  integer_range(to, lo, hi);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    uint32_t part = (1u << bits) - 1;
    uint32_t x = static_cast<uint32_t>(std::clamp<__int128>(a[l], lo, hi)) & part;
    uint32_t y = static_cast<uint32_t>(std::clamp<__int128>(b[l], lo, hi)) & part;
    out[l] = x << bits | y;
    if (c && bits < 16) out[l] |= c[l] << (2 * bits);
  }
  commit(w, in.op[0], out, mask);
}

Handler fast(const Form& f) {
  if (f.saturate || f.ftz || f.relu || f.integral) return nullptr;
  if (f.to == Ty::kF32 && f.round == Round::kNearest) {
    switch (f.from) {
      case Ty::kS32:
        return run_unary<ToFloat<int32_t>, float, int32_t>;
      case Ty::kU32:
        return run_unary<ToFloat<uint32_t>, float, uint32_t>;
      case Ty::kS16:
        return run_unary<ToFloat<int16_t>, float, int16_t>;
      case Ty::kU16:
        return run_unary<ToFloat<uint16_t>, float, uint16_t>;
      case Ty::kS8:
        return run_unary<ToFloat<int8_t>, float, int8_t>;
      case Ty::kU8:
        return run_unary<ToFloat<uint8_t>, float, uint8_t>;
      case Ty::kBF16:
        return run_unary<FromBf16, uint32_t, uint32_t>;
      case Ty::kF16:
        return run_unary<FromHalf, float, uint32_t>;
      default:
        return nullptr;
    }
  }
  if (f.to == Ty::kBF16 && f.from == Ty::kF32 && f.round == Round::kNearest) return run_unary<ToBf16, uint32_t, float>;
  return is_float(f.to) || is_float(f.from) ? nullptr : cast(f.to, f.from);
}

}  // namespace

bool decode_convert(Decoder& d) {
  if (d.mods[0] != "cvt") return false;
  std::vector<Ty> types = d.types();
  if (d.has("pack")) {
    d.in.imm = static_cast<int64_t>(types.at(0));
    d.in.op[1] = d.source(1, Ty::kS32);
    d.in.op[2] = d.source(2, Ty::kS32);
    if (d.arguments() > 3) d.in.op[3] = d.source(3, Ty::kB32);
    d.in.op[0] = d.destination(size_t{0}, Ty::kB32);
    d.emit_as(run_cvt_pack);
    return true;
  }
  if (types.size() != 2) d.fail("two types are wanted");
  Form f;
  f.to = types[0];
  f.from = types[1];
  f.saturate = d.has("sat") || d.has("satfinite");
  f.ftz = d.has("ftz");
  f.relu = d.has("relu");
  if (d.has("rs")) d.fail("stochastic rounding is not supported");
  for (const char* name : {"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"}) {
    if (!d.has(name)) continue;
    std::string n = name;
    f.integral = n.size() == 3 && n[2] == 'i';
    f.round = n[1] == 'z'   ? Round::kZero
              : n[1] == 'm' ? Round::kDown
              : n[1] == 'p' ? Round::kUp
              : n == "rna"  ? Round::kAway
                            : Round::kNearest;
  }
  if (f.from == Ty::kE4M3x2 || f.from == Ty::kE5M2x2) {
    if (f.to != Ty::kF16x2 || f.relu) d.fail("only cvt.rn.f16x2 from fp8");
    d.in.mode = f.from == Ty::kE5M2x2;
    d.in.op[1] = d.source(1, Ty::kB16);
    d.in.op[0] = d.destination(size_t{0}, Ty::kB32);
    d.emit_as(run_from_fp8);
    return true;
  }
  if (f.to == Ty::kF16x2 || f.to == Ty::kBF16x2 || f.to == Ty::kE4M3x2 || f.to == Ty::kE5M2x2) {
    bool one_register = f.from == Ty::kF16x2;
    if (f.from != Ty::kF32 && !one_register) d.fail("source type not supported");
    Ty result = f.to == Ty::kF16x2 || f.to == Ty::kBF16x2 ? Ty::kB32 : Ty::kB16;
    if (f.to == Ty::kF16x2) f.to = Ty::kF16;
    if (f.to == Ty::kBF16x2) f.to = Ty::kBF16;
    d.in.imm = pack_form(f);
    d.in.op[1] = d.source(1, Ty::kB32);
    d.in.op[2] = one_register ? d.in.op[1] : d.source(2, Ty::kB32);
    d.in.op[0] = d.destination(size_t{0}, result);
    d.emit_as(run_convert_pair);
    return true;
  }
  if (f.to == Ty::kF16x2 || f.from == Ty::kF16x2 || f.to == Ty::kNone) d.fail("form not supported");
  if (f.ftz && f.from != Ty::kF32 && f.to != Ty::kF32) f.ftz = false;
  Handler fn = fast(f);
  if (!fn) {
    bool wide_to = bits_of(f.to) == 64, wide_from = bits_of(f.from) == 64;
    fn = wide_to
             ? (wide_from ? static_cast<Handler>(run_convert<uint64_t, uint64_t>) : run_convert<uint64_t, uint32_t>)
             : (wide_from ? static_cast<Handler>(run_convert<uint32_t, uint64_t>) : run_convert<uint32_t, uint32_t>);
    d.in.imm = pack_form(f);
  }
  uint32_t from = d.source(1, f.from), to = d.destination(size_t{0}, f.to);
  d.in.op[1] = from;
  d.in.op[0] = to;
  d.emit_as(fn);
  return true;
}

}  // namespace kernelforge::vcuda
