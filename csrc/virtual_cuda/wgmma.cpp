// wgmma.mma_async: each warp of the warpgroup owns 16 of the 64 rows and runs its own asynchronous queue.
#include <algorithm>

#include "checker.h"
#include "dot.h"
#include "lane_ops.h"

namespace kernelforge::vcuda {
namespace {

// Instr: list = accumulators, then A registers (when A is in registers). op: 1 A descriptor, 2 B descriptor,
// 3 scale-d predicate (or kNone with imm bit 16: constant). mode: Elem a | Elem b << 3.
// imm: n (bits 0-8), transpose A 9, transpose B 10, negate A 11, negate B 12, A in registers 13, saturate 14, scale-d
// constant 16-17.
struct Shape {
  uint32_t n, k;
  Elem a, b;
  bool transpose_a, transpose_b, negate_a, negate_b, a_registers, saturate;
};

Shape shape_of(const Instr& in) {
  Shape s;
  s.n = static_cast<uint32_t>(in.imm & 0x1ff);
  s.a = static_cast<Elem>(in.mode & 7);
  s.b = static_cast<Elem>(in.mode >> 3 & 7);
  s.k = 32 / elem_bytes(s.a);
  s.transpose_a = in.imm >> 9 & 1;
  s.transpose_b = in.imm >> 10 & 1;
  s.negate_a = in.imm >> 11 & 1;
  s.negate_b = in.imm >> 12 & 1;
  s.a_registers = in.imm >> 13 & 1;
  s.saturate = in.imm >> 14 & 1;
  return s;
}

struct Descriptor {
  uint32_t start, leading, stride, swizzle;  // swizzle: 0 none, 1 128B, 2 64B, 3 32B
  explicit Descriptor(uint64_t d)
      : start(static_cast<uint32_t>(d & 0x3fff) << 4),
        leading(static_cast<uint32_t>(d >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(d >> 32 & 0x3fff) << 4),
        swizzle(static_cast<uint32_t>(d >> 62)) {
    if (d >> 49 & 7) throw KernelFault("wgmma descriptor with a base offset is not supported");
  }
  uint32_t width() const { return swizzle == 0 ? 16 : swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32; }
  uint32_t permute(uint32_t address) const {
    switch (swizzle) {
      case 1:
        return address ^ (address >> 3 & 0x70);
      case 2:
        return address ^ (address >> 3 & 0x30);
      case 3:
        return address ^ (address >> 3 & 0x10);
      default:
        return address;
    }
  }
  // The 16-byte chunk `chunk` (of 2) along k of row `row`; K-major.
  uint32_t k_major(uint32_t row, uint32_t chunk) const {
    uint32_t group = start + row / 8 * stride;
    if (swizzle == 0) return group + row % 8 * 16 + chunk * leading;
    return permute(group + row % 8 * width() + chunk * 16);
  }
  // The chunk of 8 16-bit elements from row 8*block at k; M/N-major.
  uint32_t mn_major(uint32_t block, uint32_t k) const {
    if (swizzle == 0) return start + block * stride + k % 8 * 16 + k / 8 * leading;
    uint32_t per_line = width() / 16;
    return permute(start + block / per_line * leading + block % per_line * 16 + k % 8 * width() + k / 8 * stride);
  }
};

// Visits the 16-byte chunks of rows [first, first + rows): f(address, row, k, along_k).
template <class F>
void for_each_chunk(const Descriptor& d, bool transposed, uint32_t element, uint32_t first, uint32_t rows, F f) {
  if (!transposed) {
    for (uint32_t r = first; r < first + rows; ++r)
      for (uint32_t c = 0; c < 2; ++c) f(d.k_major(r, c), r - first, c * 16 / element, true);
  } else {
    for (uint32_t k = 0; k < 16; ++k)
      for (uint32_t r = first; r < first + rows; r += 8) f(d.mn_major(r / 8, k), r - first, k, false);
  }
}

void load_a(Warp& w, const Instr& in, const Shape& s, uint64_t descriptor, DotTile& t) {
  if (s.a_registers) {
    uint32_t e = 4 / elem_bytes(s.a);
    const uint32_t* list = w.lists + in.list + s.n / 2;
    for (uint32_t r = 0; r < 4; ++r) {
      const uint32_t* v = w.in<uint32_t>(list[r]);
      for (uint32_t l = 0; l < kLanes; ++l)
        decode_elements(s.a, reinterpret_cast<const uint8_t*>(v + l), e,
                        t.a + ((l >> 2) + 8 * (r & 1)) * t.k + (r >> 1) * 4 * e + (l & 3) * e, 1);
    }
    return;
  }
  uint32_t per_chunk = 16 / elem_bytes(s.a);
  for_each_chunk(Descriptor(descriptor), s.transpose_a, elem_bytes(s.a), 16 * (w.id % 4), 16,
                 [&](uint32_t address, uint32_t row, uint32_t k, bool along_k) {
                   const uint8_t* p = shared_pointer(*w.cta, address, 16);
                   decode_elements(s.a, p, per_chunk, t.a + row * t.k + k, along_k ? 1 : t.k);
                 });
}

void load_b(Warp& w, const Shape& s, uint64_t descriptor, DotTile& t) {
  uint32_t per_chunk = 16 / elem_bytes(s.b);
  for_each_chunk(Descriptor(descriptor), s.transpose_b, elem_bytes(s.b), 0, s.n,
                 [&](uint32_t address, uint32_t column, uint32_t k, bool along_k) {
                   const uint8_t* p = shared_pointer(*w.cta, address, 16);
                   decode_elements(s.b, p, per_chunk, t.b + k * t.n + column, along_k ? t.n : 1);
                 });
}

// Accumulator register r: row g + 8*(r/2 % 2), column 8*(r/4) + 2t + r%2.
void execute(Warp& w, const WgmmaOp& op, bool on_hold) {
  const Instr& in = w.code[op.pc];
  Shape s = shape_of(in);
  static thread_local DotTile t;
  t.rows = 16;
  t.n = s.n;
  t.k = s.k;
  load_a(w, in, s, op.a, t);
  load_b(w, s, op.b, t);
  if (s.negate_a)
    for (uint32_t i = 0; i < t.rows * t.k; ++i) t.a[i] = -t.a[i];
  if (s.negate_b)
    for (uint32_t i = 0; i < t.n * t.k; ++i) t.b[i] = -t.b[i];
  alignas(64) static thread_local uint32_t d[16 * kMaxN];
  const uint32_t* list = w.lists + in.list;
  auto lanes = [&](uint32_t slot) {
    return on_hold ? w.wgmma_hold.data() + static_cast<size_t>(slot) * kLanes : w.out<uint32_t>(slot);
  };
  for (uint32_t r = 0; r < s.n / 2; ++r) {
    const uint32_t* v = lanes(list[r]);
    for (uint32_t l = 0; l < kLanes; ++l)
      d[((l >> 2) + 8 * (r >> 1 & 1)) * s.n + 8 * (r >> 2) + 2 * (l & 3) + (r & 1)] = op.scale_d ? v[l] : 0;
  }
  const Program& program = *w.cta->launch->program;
  if (elem_is_integer(s.a))
    dot_int32(t, reinterpret_cast<int32_t*>(d), s.saturate);
  else if (program.rounded)
    dot_rounded(t, reinterpret_cast<float*>(d));
  else
    dot_float(t, reinterpret_cast<float*>(d), accumulator_bits(s.a, s.b, program.sm));
  for (uint32_t r = 0; r < s.n / 2; ++r) {
    uint32_t* v = lanes(list[r]);
    for (uint32_t l = 0; l < kLanes; ++l)
      v[l] = d[((l >> 2) + 8 * (r >> 1 & 1)) * s.n + 8 * (r >> 2) + 2 * (l & 3) + (r & 1)];
  }
}

void check_reads(Warp& w, const Instr& in, const Shape& s, const WgmmaOp& op) {
  Checker& checker = *w.cta->checker;
  uint32_t begin = 0, end = 0;
  auto visit = [&](uint32_t address, uint32_t, uint32_t, bool) {
    shared_pointer(*w.cta, address, 16);
    if (address != end) {
      if (end > begin) checker.wgmma_read(w, begin, end - begin, op.group + 1);
      begin = address;
    }
    end = address + 16;
  };
  if (!s.a_registers) for_each_chunk(Descriptor(op.a), s.transpose_a, elem_bytes(s.a), 16 * (w.id % 4), 16, visit);
  for_each_chunk(Descriptor(op.b), s.transpose_b, elem_bytes(s.b), 0, s.n, visit);
  if (end > begin) checker.wgmma_read(w, begin, end - begin, op.group + 1);
  checker.wgmma_issue(w, w.lists + in.list, s.n / 2 + (s.a_registers ? 4 : 0), op.group + 1);
}

void run_wgmma(Warp& w, const Instr& in, uint32_t mask) {
  if (mask != kFullMask) throw KernelFault("wgmma needs all 32 lanes");
  Shape s = shape_of(in);
  WgmmaOp op;
  op.pc = w.pc;
  op.group = w.wgmma_group;
  auto uniform = [&](uint32_t slot) {
    const uint64_t* v = w.in<uint64_t>(slot);
    for (uint32_t l = 1; l < kLanes; ++l)
      if (v[l] != v[0]) throw KernelFault("the wgmma descriptor differs between the lanes of the warp");
    return v[0];
  };
  if (!s.a_registers) op.a = uniform(in.op[1]);
  op.b = uniform(in.op[2]);
  uint32_t p = in.op[3] == kNone ? (in.imm >> 16 & 1 ? kFullMask : 0) : w.predicate(in.op[3]);
  if (p != 0 && p != kFullMask) throw KernelFault("scale-d differs between the lanes of the warp");
  op.scale_d = p != 0;
  ++w.wgmma_issued;
  if (w.cta->checker) check_reads(w, in, s, op);
  if (w.cta->launch->schedule.landing == Landing::kEarly) {
    execute(w, op, false);
    op.landed = true;
    ++w.cta->landed;
  } else {
    if (w.wgmma_hold.empty()) {
      w.wgmma_hold.resize(static_cast<size_t>(w.cta->entry->slots) * kLanes);
      w.wgmma_held.resize(w.cta->entry->slots);
    }
    for (uint32_t r = 0; r < s.n / 2; ++r) {
      uint32_t slot = w.lists[in.list + r];
      if (w.wgmma_held[slot]++) continue;
      uint32_t* v = w.out<uint32_t>(slot);
      std::memcpy(w.wgmma_hold.data() + static_cast<size_t>(slot) * kLanes, v, kLanes * 4);
      for (uint32_t l = 0; l < kLanes; ++l) v[l] = 0x5a5a5a5au + slot * 64 + l;
    }
  }
  w.wgmmas.push_back(op);
}

void run_fence(Warp& w, const Instr&, uint32_t) {
  if (w.cta->checker) w.cta->checker->wgmma_fence(w);
}

void run_commit(Warp& w, const Instr&, uint32_t) { ++w.wgmma_group; }

void run_wait(Warp& w, const Instr& in, uint32_t) {
  uint32_t allowed = static_cast<uint32_t>(in.imm), done = w.wgmma_group > allowed ? w.wgmma_group - allowed : 0;
  land_wgmmas(w, done);
  w.wgmmas.erase(std::remove_if(w.wgmmas.begin(), w.wgmmas.end(), [&](const WgmmaOp& o) { return o.group < done; }),
                 w.wgmmas.end());
  if (w.cta->checker) {
    w.cta->checker->waited(w, Checker::kWgmma, done);
    w.cta->checker->wgmma_done(w, done);
  }
}

}  // namespace

void land_wgmmas(Warp& w, uint32_t below_group) {
  for (WgmmaOp& op : w.wgmmas) {
    if (op.group >= below_group) break;
    if (op.landed) continue;
    op.landed = true;
    ++w.cta->landed;
    execute(w, op, true);
    const Instr& in = w.code[op.pc];
    for (uint32_t r = 0; r < shape_of(in).n / 2; ++r) {
      uint32_t slot = w.lists[in.list + r];
      if (--w.wgmma_held[slot] == 0)
        std::memcpy(w.out<uint32_t>(slot), w.wgmma_hold.data() + static_cast<size_t>(slot) * kLanes, kLanes * 4);
    }
  }
}

bool decode_wgmma(Decoder& d) {
  if (d.mods[0] != "wgmma") return false;
  d.in.flags |= kConverged;
  if (d.has("fence")) return d.emit_as(run_fence), true;
  if (d.has("commit_group")) return d.emit_as(run_commit), true;
  if (d.has("wait_group")) {
    d.in.imm = d.immediate(d.argument(0));
    d.emit_as(run_wait);
    return true;
  }
  if (!d.has("mma_async") || d.has("sp")) d.fail("form not supported");
  size_t at = 0;
  for (size_t k = 1; k < d.mods.size(); ++k)
    if (d.mods[k].rfind("m64n", 0) == 0) at = k;
  if (!at || d.mods.size() < at + 4) d.fail("shape not supported");
  uint32_t n = static_cast<uint32_t>(std::stoul(d.mods[at].substr(4)));
  bool known_a, known_b;
  Elem a = parse_elem(d.mods[at + 2], known_a), b = parse_elem(d.mods[at + 3], known_b);
  bool integer = elem_is_integer(a);
  if (!known_a || !known_b || integer != elem_is_integer(b) || elem_bytes(a) != elem_bytes(b))
    d.fail("operand types not supported");
  if (d.mods[at + 1] != (integer ? "s32" : "f32"))
    d.fail("accumulator type not supported: its sums would not be exact");
  if (n % 8 || n == 0 || n > 256) d.fail("shape not supported");
  d.entry.uses_wgmma = true;
  d.in.flags |= kWgmma;
  std::vector<std::string> names = d.braces(d.argument(0));
  if (names.size() != n / 2)
    d.fail("the accumulator has " + std::to_string(names.size()) + " registers, not " + std::to_string(n / 2));
  std::vector<uint32_t> slots;
  auto pin = [&](uint32_t v) {
    d.virtuals_[v & 0x3fffffffu].wgmma = true;
    slots.push_back(v);
  };
  Ty accumulator = integer ? Ty::kB32 : Ty::kF32;
  for (const std::string& name : names) {
    d.source(name, accumulator);
    pin(d.destination(name, accumulator));
  }
  int64_t imm = n | (d.has("satfinite") ? 1 << 14 : 0);
  if (d.argument(1)[0] == '{') {
    std::vector<std::string> registers = d.braces(d.argument(1));
    if (registers.size() != 4) d.fail("A takes 4 registers");
    for (const std::string& name : registers) pin(d.source(name, Ty::kB32));
    imm |= 1 << 13;
  } else {
    d.in.op[1] = d.source(1, Ty::kB64);
  }
  d.in.op[2] = d.source(2, Ty::kB64);
  if (d.is_predicate(d.argument(3)))
    d.in.op[3] = d.predicate_source(d.argument(3));
  else
    imm |= static_cast<int64_t>(d.immediate(d.argument(3)) != 0) << 16;
  if (d.arguments() > 5) {
    if (d.immediate(d.argument(4)) == -1) imm |= 1 << 11;
    if (d.immediate(d.argument(5)) == -1) imm |= 1 << 12;
  }
  size_t next = 6;
  if (!(imm >> 13 & 1) && d.arguments() > next && d.immediate(d.argument(next++)) == 1) imm |= 1 << 9;
  if (d.arguments() > next && d.immediate(d.argument(next)) == 1) imm |= 1 << 10;
  if ((imm >> 9 & 3) && elem_bytes(a) != 2) d.fail("only 16-bit operands can be transposed");
  d.in.imm = imm;
  d.in.mode = static_cast<uint8_t>(static_cast<uint8_t>(a) | static_cast<uint8_t>(b) << 3);
  d.set_list(slots);
  d.emit_as(run_wgmma);
  return true;
}

}  // namespace kernelforge::vcuda
