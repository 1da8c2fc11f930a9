// ldmatrix, stmatrix and mma.sync.
#include "checker.h"
#include "dot.h"
#include "lane_ops.h"

namespace kernelforge::vcuda {
namespace {

// Rows of the 8x8 matrices: lane 8*m + r holds the address of row r of matrix m.
void row_addresses(Warp& w, const Instr& in, uint32_t slot, bool write, uint8_t* rows[kLanes]) {
  uint64_t a[kLanes];
  lane_addresses(w, in, slot, a);
  uint32_t run_begin = 0, run_end = 0;
  Checker* checker = w.cta->checker.get();
  auto flush = [&] {
    if (checker && run_end > run_begin)
      write ? checker->write(w, run_begin, run_end - run_begin) : checker->read(w, run_begin, run_end - run_begin);
  };
  for (uint32_t l = 0; l < 8u * in.count; ++l) {
    uint64_t address = (a[l] & kWindowMask) == kSharedWindow ? a[l] & ~kWindowMask : a[l];
    if (address & 15)
      throw KernelFault("matrix row at " + hex(address) + " is not a multiple of 16 (lane " + std::to_string(l) + ")");
    rows[l] = shared_pointer(*w.cta, address, 16);
    if (static_cast<uint32_t>(address) != run_end) {
      flush();
      run_begin = static_cast<uint32_t>(address);
    }
    run_end = static_cast<uint32_t>(address) + 16;
  }
  flush();
}

// Lane l of matrix m holds elements 2(l%4), 2(l%4)+1 of row l/4; .trans: of column l/4.
void run_ldmatrix(Warp& w, const Instr& in, uint32_t) {
  uint8_t* rows[kLanes];
  row_addresses(w, in, in.op[1], false, rows);
  for (uint32_t m = 0; m < in.count; ++m) {
    uint32_t out[kLanes];
    for (uint32_t l = 0; l < kLanes; ++l) {
      if (in.mode) {
        uint16_t lo, hi;
        std::memcpy(&lo, rows[8 * m + 2 * (l & 3)] + 2 * (l >> 2), 2);
        std::memcpy(&hi, rows[8 * m + 2 * (l & 3) + 1] + 2 * (l >> 2), 2);
        out[l] = static_cast<uint32_t>(hi) << 16 | lo;
      } else {
        std::memcpy(&out[l], rows[8 * m + (l >> 2)] + 4 * (l & 3), 4);
      }
    }
    commit(w, w.lists[in.list + m], out, kFullMask);
  }
}

void run_stmatrix(Warp& w, const Instr& in, uint32_t) {
  uint8_t* rows[kLanes];
  row_addresses(w, in, in.op[1], true, rows);
  for (uint32_t m = 0; m < in.count; ++m) {
    const uint32_t* v = w.in<uint32_t>(w.lists[in.list + m]);
    for (uint32_t l = 0; l < kLanes; ++l) {
      if (in.mode) {
        uint16_t lo = static_cast<uint16_t>(v[l]), hi = static_cast<uint16_t>(v[l] >> 16);
        std::memcpy(rows[8 * m + 2 * (l & 3)] + 2 * (l >> 2), &lo, 2);
        std::memcpy(rows[8 * m + 2 * (l & 3) + 1] + 2 * (l >> 2), &hi, 2);
      } else {
        std::memcpy(rows[8 * m + (l >> 2)] + 4 * (l & 3), &v[l], 4);
      }
    }
  }
}

// A register of a fragment holds 4 bytes of one row (A) or one column (B) along k. With g = lane/4 and t = lane%4:
// A register r: row g + 8*(r % row_blocks), elements from (r / row_blocks)*4e + t*e; B register r: column g, elements
// from r*4e + t*e; e elements in 4 bytes. C registers: row g + 8*(r/2), columns 2t + r%2.
// list: d, a, b, c. mode: Elem of a | Elem of b << 3. imm: k | rows << 8 | saturate << 16.
void run_mma(Warp& w, const Instr& in, uint32_t) {
  DotTile t;
  t.k = static_cast<uint32_t>(in.imm & 0xff);
  t.rows = static_cast<uint32_t>(in.imm >> 8 & 0xff);
  t.n = 8;
  Elem ea = static_cast<Elem>(in.mode & 7), eb = static_cast<Elem>(in.mode >> 3);
  uint32_t e = 4 / elem_bytes(ea), blocks = t.rows / 8, b_registers = t.k / (4 * e), a_registers = b_registers * blocks,
           c_registers = 2 * blocks;
  const uint32_t* list = w.lists + in.list;
  const uint32_t *ld = list, *la = ld + c_registers, *lb = la + a_registers, *lc = lb + b_registers;
  // Rows of A and columns of B as bytes, then their values.
  alignas(64) uint8_t bytes[16 * kMaxK * 2];
  alignas(64) float columns[8 * kMaxK];
  uint32_t pitch = t.k * elem_bytes(ea);
  for (uint32_t r = 0; r < a_registers; ++r) {
    const uint32_t* v = w.in<uint32_t>(la[r]);
    for (uint32_t l = 0; l < kLanes; ++l)
      std::memcpy(bytes + ((l >> 2) + 8 * (r % blocks)) * pitch + (r / blocks) * 16 + (l & 3) * 4, v + l, 4);
  }
  decode_elements(ea, bytes, t.rows * t.k, t.a, 1);
  for (uint32_t r = 0; r < b_registers; ++r) {
    const uint32_t* v = w.in<uint32_t>(lb[r]);
    for (uint32_t l = 0; l < kLanes; ++l) std::memcpy(bytes + (l >> 2) * pitch + r * 16 + (l & 3) * 4, v + l, 4);
  }
  decode_elements(eb, bytes, 8 * t.k, columns, 1);
  for (uint32_t j = 0; j < 8; ++j)
    for (uint32_t x = 0; x < t.k; ++x) t.b[x * 8 + j] = columns[j * t.k + x];
  alignas(64) uint32_t d[16 * 8];
  for (uint32_t r = 0; r < c_registers; ++r) {
    const uint32_t* v = w.in<uint32_t>(lc[r]);
    for (uint32_t l = 0; l < kLanes; ++l) d[((l >> 2) + 8 * (r >> 1)) * 8 + 2 * (l & 3) + (r & 1)] = v[l];
  }
  if (elem_is_integer(ea)) {
    dot_int32(t, reinterpret_cast<int32_t*>(d), in.imm >> 16 & 1);
  } else {
    alignas(64) float f[16 * 8];
    std::memcpy(f, d, sizeof(f));
    const Program& program = *w.cta->launch->program;
    program.rounded ? dot_rounded(t, f) : dot_float(t, f, accumulator_bits(ea, eb, program.sm));
    std::memcpy(d, f, sizeof(f));
  }
  for (uint32_t r = 0; r < c_registers; ++r) {
    uint32_t out[kLanes];
    for (uint32_t l = 0; l < kLanes; ++l) out[l] = d[((l >> 2) + 8 * (r >> 1)) * 8 + 2 * (l & 3) + (r & 1)];
    commit(w, ld[r], out, kFullMask);
  }
}

bool decode_matrix_copy(Decoder& d, bool load) {
  d.in.flags |= kConverged | (load ? 0 : kEffect);
  if (!d.has("m8n8") || !d.has("b16")) d.fail("only .m8n8 .b16");
  d.in.count = d.has("x4") ? 4 : d.has("x2") ? 2 : 1;
  d.in.mode = d.has("trans");
  d.in.space = Space::kShared;
  d.address(d.argument(load ? 1 : 0), 1);
  std::vector<uint32_t> slots;
  for (const std::string& n : d.braces(d.argument(load ? 0 : 1)))
    slots.push_back(load ? d.destination(n, Ty::kB32) : d.source(n, Ty::kB32));
  if (slots.size() != d.in.count) d.fail("wrong number of registers");
  d.set_list(slots);
  d.emit_as(load ? run_ldmatrix : run_stmatrix);
  return true;
}

}  // namespace

bool decode_matrix(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op == "ldmatrix" || op == "stmatrix") return decode_matrix_copy(d, op == "ldmatrix");
  if (op != "mma") return false;
  struct Shape {
    const char* name;
    uint32_t rows, k;
  };
  const Shape* shape = nullptr;
  static const Shape shapes[] = {{"m16n8k32", 16, 32}, {"m16n8k16", 16, 16}, {"m16n8k8", 16, 8}, {"m8n8k16", 8, 16}};
  for (const Shape& s : shapes)
    if (d.has(s.name)) shape = &s;
  size_t n = d.mods.size();
  if (!shape || n < 6 || !d.has("row") || !d.has("col")) d.fail("shape not supported");
  bool known_a, known_b;
  Elem a = parse_elem(d.mods[n - 3], known_a), b = parse_elem(d.mods[n - 2], known_b);
  const std::string &dt = d.mods[n - 4], &ct = d.mods[n - 1];
  if (!known_a || !known_b) d.fail("operand type not supported");
  bool integer = elem_is_integer(a);
  if (integer != elem_is_integer(b) || elem_bytes(a) != elem_bytes(b)) d.fail("operand types do not go together");
  if (dt != ct || dt != (integer ? "s32" : "f32"))
    d.fail("accumulator type not supported: its sums would not be exact");
  uint32_t e = 4 / elem_bytes(a), k = shape->k;
  bool legal = shape->rows == 8     ? integer && k == 16
               : integer            ? k == 16 || k == 32
               : elem_bytes(a) == 2 ? k == 8 || k == 16
                                    : k == 32 || k == 16;
  if (!legal) d.fail("shape not supported for these types");
  uint32_t blocks = shape->rows / 8, b_registers = k / (4 * e);
  size_t counts[4] = {2 * blocks, b_registers * blocks, b_registers, 2 * blocks};
  std::vector<uint32_t> slots;
  for (size_t part = 0; part < 4; ++part) {
    std::vector<std::string> names = d.braces(d.argument(part));
    if (names.size() != counts[part])
      d.fail("operand " + std::to_string(part) + " has " + std::to_string(names.size()) + " registers, not " +
             std::to_string(counts[part]));
    for (const std::string& name : names)
      slots.push_back(part == 0 ? d.destination(name, Ty::kB32)
                                : d.source(name, integer || part == 1 || part == 2 ? Ty::kB32 : Ty::kF32));
  }
  d.set_list(slots);
  d.in.flags |= kConverged;
  d.in.mode = static_cast<uint8_t>(static_cast<uint8_t>(a) | static_cast<uint8_t>(b) << 3);
  d.in.imm = static_cast<int64_t>(k | shape->rows << 8 | (d.has("satfinite") ? 1u << 16 : 0));
  d.emit_as(run_mma);
  return true;
}

}  // namespace kernelforge::vcuda
