// Bulk copies and tensor maps (TMA).
#include <algorithm>

#include "checker.h"
#include "lane_ops.h"

namespace kernelforge::vcuda {
namespace {

bool lands_now(Cta& cta) {
  Landing l = cta.launch->schedule.landing;
  return l == Landing::kEarly || (l == Landing::kRandom && (cta.random.next() & 3) == 0);
}

// 16-byte chunks of a 128-byte line, permuted by the line's number in its 2, 4 or 8 lines.
uint32_t swizzled(uint32_t address, uint32_t mode) {
  switch (mode) {
    case 1:
      return address ^ (address >> 3 & 0x10);
    case 2:
      return address ^ (address >> 3 & 0x30);
    case 3:
      return address ^ (address >> 3 & 0x70);
    default:
      return address;
  }
}

uint32_t box_bytes(const TensorMap& m) {
  uint32_t n = m.element_bytes;
  for (uint32_t k = 0; k < m.rank; ++k) n *= m.box[k];
  return n;
}

// Visits the rows of a box: f(shared offset, global address, first valid element, end of valid elements).
template <class F>
void for_each_row(const TensorMap& m, const int32_t* coordinate, F f) {
  uint32_t index[5] = {0, 0, 0, 0, 0};
  uint32_t row_bytes = m.box[0] * m.element_bytes, offset = 0;
  while (true) {
    bool inside = true;
    uint64_t address = m.address;
    for (uint32_t k = 1; k < m.rank; ++k) {
      int64_t c = static_cast<int64_t>(coordinate[k]) + static_cast<int64_t>(index[k]) * m.element_strides[k];
      inside &= c >= 0 && c < static_cast<int64_t>(m.dims[k]);
      address += static_cast<uint64_t>(c) * m.strides[k];
    }
    int64_t begin = inside ? std::clamp<int64_t>(-static_cast<int64_t>(coordinate[0]), 0, m.box[0]) : 0;
    int64_t end = inside ? std::clamp<int64_t>(static_cast<int64_t>(m.dims[0]) - coordinate[0], 0, m.box[0]) : 0;
    if (end < begin) end = begin;
    address += static_cast<uint64_t>(static_cast<int64_t>(coordinate[0]) * m.element_bytes);
    f(offset, address, static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
    offset += row_bytes;
    uint32_t k = 1;
    for (; k < m.rank; ++k) {
      if (++index[k] < m.box[k]) break;
      index[k] = 0;
    }
    if (k >= m.rank) return;
  }
}

const TensorMap& tensor_map(const Launch& launch, uint64_t generic) {
  if ((generic & kWindowMask) == kParamWindow) {
    auto it = launch.tensor_maps.find(generic & ~kWindowMask);
    if (it != launch.tensor_maps.end()) return it->second;
  }
  throw KernelFault("no tensor map at " + hex(generic) +
                    "; a descriptor must be a __grid_constant__ parameter given as a dict");
}

}  // namespace

void land_load(Cta& cta, const BulkLoad& l) {
  ++cta.landed;
  uint8_t* shared = cta.shared.data();
  if (!l.map) {
    std::memcpy(shared + l.shared, global_pointer(*cta.launch, l.global, l.bytes, false), l.bytes);
  } else {
    const TensorMap& m = *l.map;
    uint32_t es = m.element_bytes, row = m.box[0] * es;
    for_each_row(m, l.coordinate, [&](uint32_t offset, uint64_t address, uint32_t begin, uint32_t end) {
      if (begin < end)
        global_pointer(*cta.launch, address + begin * es, static_cast<uint64_t>(end - begin) * es, false);
      for (uint32_t chunk = 0; chunk < row; chunk += 16) {
        uint8_t* d = shared + swizzled(l.shared + offset + chunk, m.swizzle);
        uint32_t n = std::min(16u, row - chunk);
        if (chunk >= begin * es && chunk + n <= end * es) {
          std::memcpy(d, reinterpret_cast<const uint8_t*>(address) + chunk, n);
          continue;
        }
        for (uint32_t k = 0; k < n; ++k) {
          bool valid = chunk + k >= begin * es && chunk + k < end * es;
          d[k] = valid ? reinterpret_cast<const uint8_t*>(address)[chunk + k] : m.nan_fill ? 0xff : 0;
        }
      }
    });
  }
  Mbarrier& b = cta.mbarrier(l.mbarrier);
  if (cta.checker) cta.checker->load_landed(l.shared, l.bytes, l.mbarrier, b.phase + 1);
  b.tx -= l.bytes;
  mbarrier_check(cta, l.mbarrier, b);
}

void land_store(Warp& w, PendingCopy& c) {
  if (c.landed) return;
  Cta& cta = *w.cta;
  c.landed = true;
  ++cta.landed;
  const uint8_t* shared = cta.shared.data();
  if (c.map == kNone) {
    std::memcpy(global_pointer(*cta.launch, c.global, c.bytes, true), shared + c.shared, c.bytes);
    mark_written(cta, c.global, c.bytes);
    return;
  }
  const TensorStore& store = cta.stores[c.map];
  const TensorMap& m = *store.map;
  uint32_t es = m.element_bytes;
  for_each_row(m, store.coordinate, [&](uint32_t offset, uint64_t address, uint32_t begin, uint32_t end) {
    if (begin >= end) return;
    uint8_t* g =
        global_pointer(*cta.launch, address + begin * es, static_cast<uint64_t>(end - begin) * es, true) - begin * es;
    mark_written(cta, address + begin * es, static_cast<uint64_t>(end - begin) * es);
    for (uint32_t k = begin * es; k < end * es; ++k) {
      uint32_t at = offset + k;
      g[k] = shared[(swizzled(c.shared + (at & ~15u), m.swizzle)) + (at & 15)];
    }
  });
}

namespace {

// op: 1 shared, 2 global or tensor map, 3 size, 4 mbarrier; list: coordinates. mode: dimensions, 0 without a tensor
// map.
void run_bulk_load(Warp& w, const Instr& in, uint32_t mask) {
  Cta& cta = *w.cta;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    BulkLoad b;
    b.warp = w.id;
    b.pc = w.pc;
    auto value = [&](uint32_t slot, bool wide) {
      return wide ? w.in<uint64_t>(slot)[l] : static_cast<uint64_t>(w.in<uint32_t>(slot)[l]);
    };
    b.shared = shared_address(value(in.op[1], in.imm & 1));
    b.mbarrier = shared_address(value(in.op[4], in.imm & 2));
    uint64_t from = w.in<uint64_t>(in.op[2])[l];
    if (in.mode) {
      b.map = &tensor_map(*cta.launch, from);
      if (b.map->rank != in.mode)
        throw KernelFault("a " + std::to_string(in.mode) + "-d copy with a tensor map of rank " +
                          std::to_string(b.map->rank));
      for (uint32_t k = 0; k < in.mode; ++k)
        b.coordinate[k] = static_cast<int32_t>(w.in<uint32_t>(w.lists[in.list + k])[l]);
      b.bytes = box_bytes(*b.map);
      if (b.shared % 128)
        throw KernelFault("tensor copy to " + hex(b.shared) + ": shared address not a multiple of 128");
    } else {
      b.global = from;
      b.bytes = w.in<uint32_t>(in.op[3])[l];
      if (b.shared % 16 || b.global % 16 || b.bytes % 16)
        throw KernelFault("bulk copy of " + std::to_string(b.bytes) + " bytes from " + hex(b.global) + " to " +
                          hex(b.shared) + " is not in multiples of 16");
      global_pointer(*cta.launch, b.global, b.bytes, false);
    }
    shared_pointer(cta, b.shared, b.bytes);
    cta.mbarrier(b.mbarrier);
    if (cta.checker) {
      cta.checker->mbarrier_use(w, b.mbarrier, true);
      cta.checker->load_write(w, b.shared, b.bytes, b.mbarrier);
    }
    if (lands_now(cta)) {
      land_load(cta, b);
    } else {
      cta.poison(b.shared, b.bytes);
      cta.loads.push_back(b);
    }
  }
}

void run_bulk_store(Warp& w, const Instr& in, uint32_t mask) {
  Cta& cta = *w.cta;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    PendingCopy c;
    c.kind = PendingCopy::kBulkStore;
    c.lane = static_cast<uint8_t>(l);
    c.group = w.store_group[l];
    c.epoch = w.store_epoch;
    c.pc = w.pc;
    c.shared = shared_address(in.imm & 1 ? w.in<uint64_t>(in.op[1])[l] : w.in<uint32_t>(in.op[1])[l]);
    c.global = w.in<uint64_t>(in.op[2])[l];
    c.map = kNone;
    if (in.mode) {
      TensorStore s;
      s.map = &tensor_map(*cta.launch, c.global);
      if (s.map->rank != in.mode)
        throw KernelFault("a " + std::to_string(in.mode) + "-d copy with a tensor map of rank " +
                          std::to_string(s.map->rank));
      for (uint32_t k = 0; k < in.mode; ++k)
        s.coordinate[k] = static_cast<int32_t>(w.in<uint32_t>(w.lists[in.list + k])[l]);
      c.bytes = box_bytes(*s.map);
      if (c.shared % 128)
        throw KernelFault("tensor copy from " + hex(c.shared) + ": shared address not a multiple of 128");
      c.map = static_cast<uint32_t>(cta.stores.size());
      cta.stores.push_back(s);
    } else {
      c.bytes = w.in<uint32_t>(in.op[3])[l];
      if (c.shared % 16 || c.global % 16 || c.bytes % 16)
        throw KernelFault("bulk copy of " + std::to_string(c.bytes) + " bytes is not in multiples of 16");
      global_pointer(*cta.launch, c.global, c.bytes, true);
    }
    shared_pointer(cta, c.shared, c.bytes);
    if (cta.checker) cta.checker->store_read(w, c.shared, c.bytes, c.epoch);
    w.stores.push_back(c);
    if (lands_now(cta)) land_store(w, w.stores.back());
  }
}

void run_bulk_commit(Warp& w, const Instr&, uint32_t mask) {
  for (uint32_t l = 0; l < kLanes; ++l) w.store_group[l] += mask >> l & 1;
  ++w.store_epoch;
}

void run_bulk_wait(Warp& w, const Instr& in, uint32_t mask) {
  auto covered = [&](const PendingCopy& c) {
    return (mask >> c.lane & 1) && static_cast<int64_t>(c.group) < static_cast<int64_t>(w.store_group[c.lane]) - in.imm;
  };
  for (PendingCopy& c : w.stores)
    if (covered(c)) land_store(w, c);
  w.stores.erase(std::remove_if(w.stores.begin(), w.stores.end(), covered), w.stores.end());
  if (!w.cta->checker) return;
  uint32_t least = w.store_epoch;
  for (const PendingCopy& c : w.stores) least = std::min(least, c.epoch);
  w.cta->checker->waited(w, Checker::kStore, least - 1);
}

// "[%rd6, {%r1, %r2}]" -> address slot and coordinates.
void tensor_operand(Decoder& d, const std::string& text, std::vector<uint32_t>& coordinates) {
  std::vector<std::string> parts = split_arguments(text.substr(1, text.size() - 2));
  if (parts.size() != 2) d.fail("'" + text + "' is not a tensor address");
  d.in.op[2] = d.source(parts[0], Ty::kU64);
  for (const std::string& c : d.braces(parts[1])) coordinates.push_back(d.source(c, Ty::kB32));
}

}  // namespace

bool decode_bulk(Decoder& d) {
  d.in.flags |= kEffect;
  if (d.has("commit_group")) return d.emit_as(run_bulk_commit), true;
  if (d.has("wait_group")) {
    d.in.imm = d.immediate(d.argument(0));
    d.emit_as(run_bulk_wait);
    return true;
  }
  if (d.has("prefetch") || d.has("multicast::cluster") || d.has("im2col")) d.fail("form not supported");
  bool store = d.has("bulk_group");
  uint8_t dims = 0;
  for (const char* name : {"1d", "2d", "3d", "4d", "5d"})
    if (d.has(name)) dims = static_cast<uint8_t>(name[0] - '0');
  if (d.has("tensor") != (dims != 0)) d.fail("form not supported");
  size_t shared = store ? 1 : 0, global = store ? 0 : 1;
  int64_t wide = 0;
  d.address(d.argument(shared), 1);
  if (d.in.imm) d.fail("an offset in the address is not supported");
  wide |= d.in.address64 ? 1 : 0;
  std::vector<uint32_t> coordinates;
  if (dims) {
    tensor_operand(d, d.argument(global), coordinates);
  } else {
    d.address(d.argument(global), 2);
    if (d.in.imm || !d.in.address64) d.fail("form not supported");
    d.in.op[3] = d.source(2, Ty::kU32);
  }
  if (!store) {
    d.address(d.argument(dims ? 2 : 3), 4);
    if (d.in.imm) d.fail("an offset in the address is not supported");
    wide |= d.in.address64 ? 2 : 0;
  }
  d.in.imm = wide;
  d.in.mode = dims;
  d.set_list(coordinates);
  d.emit_as(store ? run_bulk_store : run_bulk_load);
  return true;
}

}  // namespace kernelforge::vcuda
