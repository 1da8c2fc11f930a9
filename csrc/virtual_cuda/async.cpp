// cp.async. Issued copies land early, late or at random, as the schedule says.
#include <algorithm>

#include "checker.h"
#include "lane_ops.h"

namespace kernelforge::vcuda {

void Cta::poison(uint32_t address, uint32_t bytes) {
  uint8_t* p = shared.data() + address;
  uint64_t r = random.next() | 0x8080808080808080ull;
  for (uint32_t k = 0; k < bytes; ++k) p[k] = static_cast<uint8_t>((r >> (8 * (k & 7))) ^ (k >> 3) * 29);
}

void land_copy(Warp& w, PendingCopy& c) {
  if (c.landed) return;
  Cta& cta = *w.cta;
  c.landed = true;
  ++cta.landed;
  if (c.kind == PendingCopy::kArrive) {
    for (PendingCopy& earlier : w.copies) {
      if (&earlier == &c) break;
      if (earlier.lane == c.lane) land_copy(w, earlier);
    }
    Mbarrier& b = cta.mbarrier(c.shared);
    if (cta.checker) cta.checker->mbarrier_copies_arrive(w, c.shared, c.epoch);
    b.pending -= 1;
    mbarrier_check(cta, c.shared, b);
    return;
  }
  uint8_t* d = cta.shared.data() + c.shared;
  if (c.source_size) std::memcpy(d, reinterpret_cast<const void*>(c.global), c.source_size);
  std::memset(d + c.source_size, 0, c.size - c.source_size);
}

namespace {

// op: 1 destination, 2 source, 3 source size or ignore predicate; imm: destination offset | source offset; mode bit 0:
// op 3 is a size, bit 1: a predicate. bytes: size.
void run_cp_async(Warp& w, const Instr& in, uint32_t mask) {
  Cta& cta = *w.cta;
  uint64_t d[kLanes], s[kLanes];
  Instr a = in;
  a.address64 = in.mode & 4;
  a.imm = static_cast<int32_t>(in.imm >> 32);
  lane_addresses(w, a, in.op[1], d);
  a.address64 = true;
  a.imm = static_cast<int32_t>(in.imm);
  lane_addresses(w, a, in.op[2], s);
  bool now = cta.launch->schedule.landing == Landing::kEarly;
  uint32_t run_begin = 0, run_end = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    PendingCopy c;
    c.lane = static_cast<uint8_t>(l);
    c.size = in.bytes;
    c.source_size = in.bytes;
    if (in.mode & 1) {
      uint32_t n = w.in<uint32_t>(in.op[3])[l];
      if (n > in.bytes)
        throw KernelFault("cp.async: source size " + std::to_string(n) + " above " + std::to_string(in.bytes));
      c.source_size = static_cast<uint8_t>(n);
    }
    if ((in.mode & 2) && (w.predicate(in.op[3]) >> l & 1)) c.source_size = 0;
    c.shared = shared_address(d[l]);
    c.global = s[l];
    c.group = w.copy_group[l];
    c.epoch = w.copy_epoch;
    c.pc = w.pc;
    shared_pointer(cta, c.shared, c.size);
    if (c.shared % c.size || c.global % c.size)
      throw KernelFault("cp.async of " + std::to_string(c.size) + " bytes from " + hex(c.global) + " to " +
                        hex(c.shared) + " is misaligned");
    if (c.source_size) global_pointer(*cta.launch, c.global, c.source_size, false);
    if (cta.checker) {
      if (c.shared != run_end) {
        if (run_end > run_begin) cta.checker->copy_write(w, run_begin, run_end - run_begin, c.epoch);
        run_begin = c.shared;
      }
      run_end = c.shared + c.size;
    }
    if (!now) cta.poison(c.shared, c.size);
    w.copies.push_back(c);
    if (now) land_copy(w, w.copies.back());
  }
  if (cta.checker && run_end > run_begin) cta.checker->copy_write(w, run_begin, run_end - run_begin, w.copy_epoch);
}

void run_cp_commit(Warp& w, const Instr&, uint32_t mask) {
  for (uint32_t l = 0; l < kLanes; ++l) w.copy_group[l] += mask >> l & 1;
  ++w.copy_epoch;
}

// imm: groups that may stay in flight; -1: wait_all.
void run_cp_wait(Warp& w, const Instr& in, uint32_t mask) {
  auto covered = [&](const PendingCopy& c) {
    if (!(mask >> c.lane & 1)) return false;
    return in.imm < 0 || static_cast<int64_t>(c.group) < static_cast<int64_t>(w.copy_group[c.lane]) - in.imm;
  };
  for (PendingCopy& c : w.copies)
    if (covered(c)) land_copy(w, c);
  w.copies.erase(std::remove_if(w.copies.begin(), w.copies.end(), covered), w.copies.end());
  if (!w.cta->checker) return;
  if (in.imm < 0) ++w.copy_epoch;
  uint32_t least = w.copy_epoch;
  for (const PendingCopy& c : w.copies) least = std::min(least, c.epoch);
  w.cta->checker->waited(w, Checker::kCopy, least - 1);
}

void run_cp_arrive(Warp& w, const Instr& in, uint32_t mask) {
  Cta& cta = *w.cta;
  uint64_t a[kLanes];
  lane_addresses(w, in, in.op[1], a);
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    PendingCopy c;
    c.kind = PendingCopy::kArrive;
    c.lane = static_cast<uint8_t>(l);
    c.group = w.copy_group[l];
    c.epoch = w.copy_epoch;
    c.shared = shared_address(a[l]);
    c.pc = w.pc;
    Mbarrier& b = cta.mbarrier(c.shared);
    if (cta.checker) cta.checker->mbarrier_use(w, c.shared, false);
    if (!in.mode) ++b.pending;  // without .noinc the arrival is on top of the expected ones
    w.copies.push_back(c);
    if (cta.launch->schedule.landing == Landing::kEarly) land_copy(w, w.copies.back());
  }
  ++w.copy_epoch;
}

}  // namespace

bool decode_async(Decoder& d) {
  if (d.mods[0] != "cp" || d.mods.size() < 2 || d.mods[1] != "async") return false;
  if (d.mods.size() > 2 && d.mods[2] == "bulk") return decode_bulk(d);
  d.in.flags |= kEffect;
  if (d.has("commit_group")) return d.emit_as(run_cp_commit), true;
  if (d.has("wait_all") || d.has("wait_group")) {
    d.in.imm = d.has("wait_all") ? -1 : d.immediate(d.argument(0));
    d.emit_as(run_cp_wait);
    return true;
  }
  if (d.has("arrive")) {
    d.in.mode = d.has("noinc");
    d.address(d.argument(0), 1);
    d.emit_as(run_cp_arrive);
    return true;
  }
  d.address(d.argument(0), 1);
  int64_t offset = d.in.imm;
  uint8_t mode = d.in.address64 ? 4 : 0;
  d.address(d.argument(1), 2);
  if (!d.in.address64) d.fail("a 32-bit global address");
  d.in.imm =
      static_cast<int64_t>(static_cast<uint64_t>(offset) << 32 | (static_cast<uint64_t>(d.in.imm) & 0xffffffffu));
  d.in.bytes = static_cast<uint8_t>(d.immediate(d.argument(2)));
  if (d.in.bytes != 4 && d.in.bytes != 8 && d.in.bytes != 16) d.fail("the size is 4, 8 or 16");
  size_t extra = d.arguments() - (d.has("L2::cache_hint") ? 1 : 0);
  if (extra > 3) {
    if (d.is_predicate(d.argument(3))) {
      d.in.op[3] = d.predicate_source(d.argument(3));
      mode |= 2;
    } else {
      d.in.op[3] = d.source(3, Ty::kU32);
      mode |= 1;
    }
  }
  d.in.mode = mode;
  d.emit_as(run_cp_async);
  return true;
}

}  // namespace kernelforge::vcuda
