// Sweep of the pinned elementary functions (docs/elementary.md) over float32 bit patterns.
//
//   elementary_sweep --function exp2 [--stride N] [--offset K] [--threads N]   one line of JSON per function
//   elementary_sweep --evaluate exp2 < float32 bits > float32 bits
//
// For every input: the special value where the specification names one, else the distance to the real value
// in units in the last place; that no operation reads or makes a subnormal, not even one whose result is then
// not selected; and that the bits with flush-to-zero and denormals-are-zero on are the bits with both off.
//
// Compile with -O3 -std=c++17 -ffp-contract=off -fwrapv -fno-strict-aliasing -fno-trapping-math -pthread,
// link -lquadmath.

#include <immintrin.h>
#include <quadmath.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

inline int32_t Bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float FromBits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr int32_t kMagnitude = 0x7FFFFFFF;
constexpr int32_t kSign = INT32_MIN;
constexpr int32_t kInf = 0x7F800000;
constexpr int32_t kNan = 0x7FC00000;
constexpr int32_t kOne = 0x3F800000;
constexpr int32_t kTiny = 0x26800000;       // 2^-50: smaller magnitudes read as zero
constexpr int32_t kRecipMax = 0x71800000;   // 2^100: larger arguments have reciprocals below 2^-100
constexpr int32_t kRoundBits = 0x4B400000;  // the bits of 12582912.0

// The arithmetic of the contract: fp32 add, subtract and multiply, each rounded on its own.
struct Plain {
  float Add(float a, float b) { return a + b; }
  float Sub(float a, float b) { return a - b; }
  float Mul(float a, float b) { return a * b; }
};

// The same, remembering whether an operand or a result was subnormal.
struct Watched {
  uint32_t seen = 0;
  float Watch(float v) {
    seen |= static_cast<uint32_t>(Bits(v) & kMagnitude) - 1u < 0x7FFFFFu;
    return v;
  }
  float Add(float a, float b) { return Watch(Watch(a) + Watch(b)); }
  float Sub(float a, float b) { return Watch(Watch(a) - Watch(b)); }
  float Mul(float a, float b) { return Watch(Watch(a) * Watch(b)); }
};

// ---- the functions, as docs/elementary.md writes them ----

inline bool IsNan(int32_t x) { return (x & kMagnitude) > kInf; }

// 1 + (r + r*q) times 2^n, the scale added to the exponent field.
template <class C>
inline float Assemble(C& c, float r, float q, int32_t n) {
  const float p = c.Add(1.0f, c.Add(r, c.Mul(r, q)));
  return FromBits(Bits(p) + (n << 23));
}

template <class C>
inline int32_t Exp2(C& c, int32_t x) {
  const int32_t a = x & kMagnitude;
  const bool below = x < 0 && a > 0x42C80000;  // x < -100
  const bool normal = a >= kTiny && a < 0x43000000 && !below;
  const float v = FromBits(normal ? x : 0);
  const int32_t n = Bits(c.Add(v, 12582912.0f)) - kRoundBits;
  const float r = c.Sub(v, static_cast<float>(n));
  float q = FromBits(0x3920FDDE);
  q = c.Add(c.Mul(q, r), FromBits(0x3AAF9F29));
  q = c.Add(c.Mul(q, r), FromBits(0x3C1D96A6));
  q = c.Add(c.Mul(q, r), FromBits(0x3D635774));
  q = c.Add(c.Mul(q, r), FromBits(0x3E75FDEE));
  q = c.Add(c.Mul(q, r), -FromBits(0x3E9D1BCF));
  int32_t y = Bits(Assemble(c, r, q, n));
  y = a >= 0x43000000 ? kInf : y;
  y = below ? 0 : y;
  return IsNan(x) ? kNan : y;
}

template <class C>
inline int32_t Exp(C& c, int32_t x) {
  const int32_t a = x & kMagnitude;
  const bool below = x < 0 && a > 0x428AA122;   // x < -100 ln 2
  const bool above = x >= 0 && a > 0x42B17217;  // e^x rounds to infinity
  const bool normal = a >= kTiny && !below && !above && !IsNan(x);
  const float v = FromBits(normal ? x : 0);
  const int32_t n = Bits(c.Add(c.Mul(v, FromBits(0x3FB8AA3B)), 12582912.0f)) - kRoundBits;
  const float m = static_cast<float>(n);
  const float r = c.Sub(c.Sub(v, c.Mul(m, FromBits(0x3F317200))), c.Mul(m, FromBits(0x35BFBE8E)));
  float q = FromBits(0x3AB51225);
  q = c.Add(c.Mul(q, r), FromBits(0x3C091CEB));
  q = c.Add(c.Mul(q, r), FromBits(0x3D2AAC79));
  q = c.Add(c.Mul(q, r), FromBits(0x3E2AAA49));
  q = c.Add(c.Mul(q, r), FromBits(0x3EFFFFFE));
  q = c.Mul(q, r);
  int32_t y = Bits(Assemble(c, r, q, n));
  y = above ? kInf : y;
  y = below ? 0 : y;
  return IsNan(x) ? kNan : y;
}

// 2^-50 <= x <= 2^100.
template <class C>
inline float RecipPositive(C& c, float x) {
  const int32_t seed = 0x7EB21A50 - Bits(x);
  const float y0 = FromBits(seed);
  const float twice = FromBits(seed + 0x00800000);
  const float y = c.Mul(twice, c.Sub(FromBits(0x3FB50700), c.Mul(x, y0)));
  return c.Add(y, c.Mul(y, c.Sub(1.0f, c.Mul(x, y))));
}

template <class C>
inline int32_t Recip(C& c, int32_t x) {
  const int32_t a = x & kMagnitude;
  const bool normal = a >= kTiny && a <= kRecipMax;
  int32_t y = Bits(RecipPositive(c, FromBits(normal ? a : kOne))) | (x & kSign);
  y = a < kTiny ? kInf : y;
  y = a > kRecipMax ? 0 : y;
  return a > kInf ? kNan : y;
}

template <class C>
inline int32_t Rsqrt(C& c, int32_t x) {
  const int32_t a = x & kMagnitude;
  const bool normal = x >= kTiny && x < kInf;
  const float v = FromBits(normal ? x : kOne);
  const int32_t seed = 0x5F2A7183 - (Bits(v) >> 1);
  const float y0 = FromBits(seed);
  const float half = FromBits(seed - 0x00800000);
  const float t = c.Mul(c.Mul(v, y0), y0);
  const float y = c.Mul(half, c.Add(c.Mul(t, c.Sub(t, FromBits(0x403E4D1C))), FromBits(0x407E594C)));
  const float e = c.Sub(0.5f, c.Mul(c.Mul(c.Mul(0.5f, v), y), y));
  int32_t z = Bits(c.Add(y, c.Mul(y, e)));
  z = x == kInf ? 0 : z;
  z = x < 0 || x > kInf ? kNan : z;
  return a < kTiny ? kInf : z;
}

template <class C>
inline int32_t Sigmoid(C& c, int32_t x) {
  const float e = FromBits(Exp(c, x | kSign));
  const float r = RecipPositive(c, c.Add(1.0f, e));
  const int32_t y = Bits(x < 0 ? c.Mul(e, r) : r);
  return IsNan(x) ? kNan : y;
}

template <class C>
inline int32_t Silu(C& c, int32_t x) {
  const float s = FromBits(Sigmoid(c, x));
  const float v = FromBits((x & kMagnitude) < kTiny ? 0 : x);
  const int32_t y = s == 0.0f ? 0 : Bits(c.Mul(v, s));
  return IsNan(x) ? kNan : y;
}

template <class C>
inline int32_t Softplus(C& c, int32_t x) {
  const float e = FromBits(Exp(c, x | kSign));
  const float u = e < 0x1p-26f ? 0.0f : e;  // log1p(e) rounds to e; e*e might be subnormal
  float q = -FromBits(0x3B597AC1);
  q = c.Add(c.Mul(q, u), FromBits(0x3CA58418));
  q = c.Add(c.Mul(q, u), -FromBits(0x3D6C318E));
  q = c.Add(c.Mul(q, u), FromBits(0x3DDABCDF));
  q = c.Add(c.Mul(q, u), -FromBits(0x3E1D3D40));
  q = c.Add(c.Mul(q, u), FromBits(0x3E49AE4F));
  q = c.Add(c.Mul(q, u), -FromBits(0x3E7F9370));
  q = c.Add(c.Mul(q, u), FromBits(0x3EAAA6F8));
  q = c.Add(c.Mul(q, u), -FromBits(0x3EFFFFE9));
  const float l = c.Add(e, c.Mul(u, c.Mul(u, q)));
  const float v = FromBits(x < kTiny ? 0 : x);  // max(x, 0)
  const int32_t y = Bits(c.Add(v, l));
  return IsNan(x) ? kNan : y;
}

// ---- the oracle ----

using std::exp, std::exp2, std::log1p, std::sqrt;
inline __float128 exp(__float128 x) { return expq(x); }
inline __float128 exp2(__float128 x) { return exp2q(x); }
inline __float128 log1p(__float128 x) { return log1pq(x); }
inline __float128 sqrt(__float128 x) { return sqrtq(x); }

// The real function of a real argument, in double, or with 113 bits for the few arguments that need them.
template <class R>
R Exact(int function, R x) {
  if (function == 0) return exp2(x);
  if (function == 1) return exp(x);
  if (function == 2) return 1 / x;
  if (function == 3) return 1 / sqrt(x);
  if (function == 4) return 1 / (1 + exp(-x));
  if (function == 5) return x / (1 + exp(-x));
  return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

// The nearest float; counts the values too close to the middle of two floats to tell.
float Nearest(__float128 exact, uint64_t& unresolved) {
  const float nearest = static_cast<float>(exact);
  const __float128 other = std::nextafter(nearest, exact > nearest ? INFINITY : -INFINITY);
  const __float128 margin = fabsq(exact - (nearest + other) / 2);
  unresolved += !std::isinf(nearest) && margin < fabsq(exact) * 0x1p-105;
  return nearest;
}

// Bits the specification names, or -1 (a NaN no function returns) where the real value is the measure.
int32_t Special(int function, float x) {
  const double v = x;
  const bool tiny = std::fabs(v) < 0x1p-50;
  const double below = -100 * 0.693147180559945309417;
  if (std::isnan(v)) return kNan;
  if (function == 0) return tiny ? kOne : v >= 128 ? kInf : v < -100 ? 0 : -1;
  if (function == 1) return tiny ? kOne : v > 88.7228390520 ? kInf : v < below ? 0 : -1;
  if (function == 2) return tiny ? kInf : std::fabs(v) > 0x1p100 ? 0 : -1;
  if (function == 3) return tiny ? kInf : v < 0 ? kNan : std::isinf(v) ? 0 : -1;
  if (function == 4) return tiny ? 0x3F000000 : v < below ? 0 : -1;
  if (function == 5) return tiny || v < below ? 0 : std::isinf(v) ? kInf : -1;
  return tiny ? 0x3F317218 : v < below ? 0 : std::isinf(v) ? kInf : -1;
}

struct Report {
  uint64_t inputs = 0, real_valued = 0, not_nearest = 0, special_wrong = 0, subnormal = 0, flush_differs = 0;
  uint64_t unresolved = 0;  // the oracle could not tell the nearest float
  double worst_ulp = 0;
  uint32_t worst_input = 0;
  uint64_t digest = 0;  // of all results, in any order

  void Merge(const Report& o) {
    inputs += o.inputs, real_valued += o.real_valued, not_nearest += o.not_nearest;
    special_wrong += o.special_wrong, subnormal += o.subnormal, flush_differs += o.flush_differs;
    unresolved += o.unresolved, digest += o.digest;
    if (o.worst_ulp > worst_ulp) worst_ulp = o.worst_ulp, worst_input = o.worst_input;
  }
};

constexpr int kBlock = 4096;
using Batch = void (*)(const int32_t*, int32_t*, uint32_t*, int);

template <int32_t (*F)(Plain&, int32_t), int32_t (*W)(Watched&, int32_t)>
__attribute__((noinline)) void Evaluate(const int32_t* in, int32_t* out, uint32_t* seen, int n) {
  if (seen == nullptr) {
    Plain c;
    for (int i = 0; i < n; ++i) out[i] = F(c, in[i]);
  } else {
    for (int i = 0; i < n; ++i) {
      Watched c;
      out[i] = W(c, in[i]);
      seen[i] = c.seen;
    }
  }
}

constexpr const char* kNames[] = {"exp2", "exp", "recip", "rsqrt", "sigmoid", "silu", "softplus"};
constexpr Batch kBatches[] = {
    Evaluate<Exp2<Plain>, Exp2<Watched>>,         Evaluate<Exp<Plain>, Exp<Watched>>,
    Evaluate<Recip<Plain>, Recip<Watched>>,       Evaluate<Rsqrt<Plain>, Rsqrt<Watched>>,
    Evaluate<Sigmoid<Plain>, Sigmoid<Watched>>,   Evaluate<Silu<Plain>, Silu<Watched>>,
    Evaluate<Softplus<Plain>, Softplus<Watched>>,
};

void Check(int function, float x, int32_t bits, Report& report) {
  const int32_t special = Special(function, x);
  if (special != -1) {
    report.special_wrong += bits != special;
    return;
  }
  const double exact = Exact<double>(function, x);
  const float got = FromBits(bits);
  ++report.real_valued;
  const int exponent = std::max(std::ilogb(exact), -126);
  const double ulp = std::fabs(static_cast<double>(got) - exact) * std::ldexp(1.0, 23 - exponent);
  if (!(ulp <= report.worst_ulp)) report.worst_ulp = ulp, report.worst_input = static_cast<uint32_t>(Bits(x));
  // Where double cannot tell on which side of the middle of two floats the value lies, quadruple must.
  uint64_t image;
  std::memcpy(&image, &exact, sizeof image);
  float nearest = static_cast<float>(exact);
  if (std::llabs(static_cast<long long>(image & 0x1FFFFFFF) - 0x10000000) <= 64)
    nearest = Nearest(Exact<__float128>(function, x), report.unresolved);
  report.not_nearest += got != nearest;
}

void Sweep(int function, uint64_t first, uint64_t last, uint64_t stride, Report* report) {
  const Batch batch = kBatches[function];
  std::vector<int32_t> in(kBlock), out(kBlock), flushed(kBlock), watched(kBlock);
  std::vector<uint32_t> seen(kBlock);
  const unsigned mode = _mm_getcsr();
  while (first < last) {
    int n = 0;
    for (; n < kBlock && first < last; first += stride) in[n++] = static_cast<int32_t>(static_cast<uint32_t>(first));
    batch(in.data(), out.data(), nullptr, n);
    batch(in.data(), watched.data(), seen.data(), n);
    _mm_setcsr(mode | 0x8040);  // FTZ, DAZ
    batch(in.data(), flushed.data(), nullptr, n);
    _mm_setcsr(mode);
    for (int i = 0; i < n; ++i) {
      report->subnormal += seen[i];
      report->flush_differs += out[i] != flushed[i] || out[i] != watched[i];
      const uint64_t mixed =
          (static_cast<uint64_t>(static_cast<uint32_t>(in[i])) << 32 | static_cast<uint32_t>(out[i]));
      report->digest += (mixed ^ mixed >> 29) * 0x9E3779B97F4A7C15ull;
      Check(function, FromBits(in[i]), out[i], *report);
    }
    report->inputs += n;
  }
}

// Each watcher must see what it watches for, or the zeros it reports mean nothing.
bool WatchersWork() {
  Watched c;
  c.Mul(0x1p-63f, 0x1p-62f);
  if (c.seen) return false;
  c.Mul(0x1p-63f, 0x1p-64f);
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);
  volatile float factor = 0x1p-64f;
  const bool flushed = 0x1p-63f * factor == 0.0f;
  _mm_setcsr(mode);
  return c.seen && flushed && 0x1p-63f * factor != 0.0f;
}

int FunctionNumber(const std::string& name) {
  for (int i = 0; i < 7; ++i)
    if (name == kNames[i]) return i;
  std::fprintf(stderr, "no function %s; there are exp2 exp recip rsqrt sigmoid silu softplus\n", name.c_str());
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int> functions;
  int evaluate = -1;
  uint64_t stride = 1, offset = 0, threads = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i], value = argv[i + 1];
    if (key == "--function")
      functions.push_back(FunctionNumber(value));
    else if (key == "--evaluate")
      evaluate = FunctionNumber(value);
    else if (key == "--stride")
      stride = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--offset")
      offset = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--threads")
      threads = std::strtoull(value.c_str(), nullptr, 10);
    else
      return std::fprintf(stderr, "no option %s\n", key.c_str()), 2;
  }
  if (argc % 2 == 0 || stride == 0 || threads == 0 || (functions.empty() && evaluate < 0)) {
    std::fprintf(stderr, "usage: %s (--function NAME)... [--stride N] [--offset K] [--threads N] | --evaluate NAME\n",
                 argv[0]);
    return 2;
  }
  if (evaluate >= 0) {
    std::vector<int32_t> in(kBlock), out(kBlock);
    while (const size_t n = std::fread(in.data(), 4, kBlock, stdin)) {
      kBatches[evaluate](in.data(), out.data(), nullptr, static_cast<int>(n));
      if (std::fwrite(out.data(), 4, n, stdout) != n) return 1;
    }
    return 0;
  }
  bool sound = WatchersWork();
  if (!sound) std::fprintf(stderr, "flushing or the watch for subnormals does not work in this build\n");
  for (const int function : functions) {
    // Interleaved by thread, so that each gets its share of special and of costly inputs.
    std::vector<Report> reports(threads);
    std::vector<std::thread> pool;
    for (uint64_t t = 0; t < threads; ++t)
      pool.emplace_back(Sweep, function, offset + t * stride, uint64_t{1} << 32, stride * threads, &reports[t]);
    for (std::thread& worker : pool) worker.join();
    Report r;
    for (const Report& part : reports) r.Merge(part);
    std::printf(
        "{\"function\": \"%s\", \"inputs\": %llu, \"real_valued\": %llu, \"worst_ulp\": %.4f, "
        "\"worst_input\": \"%08x\", "
        "\"not_nearest\": %llu, \"special_wrong\": %llu, \"subnormal\": %llu, \"flush_differs\": %llu, "
        "\"unresolved\": %llu, \"digest\": \"%016llx\"}\n",
        kNames[function], (unsigned long long)r.inputs, (unsigned long long)r.real_valued, r.worst_ulp, r.worst_input,
        (unsigned long long)r.not_nearest, (unsigned long long)r.special_wrong, (unsigned long long)r.subnormal,
        (unsigned long long)r.flush_differs, (unsigned long long)r.unresolved, (unsigned long long)r.digest);
    std::fflush(stdout);
    sound = sound && !r.special_wrong && !r.subnormal && !r.flush_differs && !r.unresolved;
  }
  return sound ? 0 : 1;
}
