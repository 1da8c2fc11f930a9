// The execution of one warp: masked lanes, the lowest pc first, and parking where lanes have to meet.
#include <algorithm>

#include "checker.h"
#include "machine.h"

namespace kernelforge::vcuda {

void Warp::reset(Cta* owner, uint32_t index, uint32_t lanes) {
  cta = owner;
  id = index;
  const Entry& entry = *owner->entry;
  rf = owner->register_store.data() + static_cast<size_t>(index) * entry.slots * kLanes;
  pred = owner->predicate_store.data() + static_cast<size_t>(index) * entry.predicates;
  code = entry.code.data();
  lists = entry.lists.data();
  live = active = lanes == kLanes ? kFullMask : (1u << lanes) - 1;
  parked = avoid = carry = 0;
  diverged = false;
  pc = 0;
  limit = kNone;
  signal = Signal::kNone;
  wait = Wait::kReady;
  polled = effect = granted = false;
  executed = 0;
  speed = 0;
  copies.clear();
  stores.clear();
  wgmmas.clear();
  wgmma_group = wgmma_issued = 0;
  copy_epoch = store_epoch = 1;
  std::memset(copy_group, 0, sizeof(copy_group));
  std::memset(store_group, 0, sizeof(store_group));
  std::fill(wgmma_held.begin(), wgmma_held.end(), 0);
  uint64_t frame = entry.text.local_bytes * kLanes;
  local.assign(frame, 0xa5);
  std::memset(rf, 0xa5, static_cast<size_t>(entry.slots) * kLanes * 4);
  std::memset(pred, 0xa5, entry.predicates * 4);
  if (entry.true_predicate >= 0) pred[entry.true_predicate] = kFullMask;
  for (const Constant& c : entry.constants) {
    if (c.wide) {
      uint64_t* d = out<uint64_t>(c.slot);
      for (uint32_t l = 0; l < kLanes; ++l) d[l] = c.bits;
    } else {
      uint32_t* d = out<uint32_t>(c.slot);
      for (uint32_t l = 0; l < kLanes; ++l) d[l] = static_cast<uint32_t>(c.bits);
    }
  }
  const Launch& launch = *owner->launch;
  for (const SpecialSlot& s : entry.specials) {
    for (uint32_t l = 0; l < kLanes; ++l) {
      uint32_t t = index * kLanes + l;
      uint64_t v = 0;
      switch (s.which) {
        case Special::kTidX:
          v = t % launch.block[0];
          break;
        case Special::kTidY:
          v = t / launch.block[0] % launch.block[1];
          break;
        case Special::kTidZ:
          v = t / launch.block[0] / launch.block[1];
          break;
        case Special::kNtidX:
          v = launch.block[0];
          break;
        case Special::kNtidY:
          v = launch.block[1];
          break;
        case Special::kNtidZ:
          v = launch.block[2];
          break;
        case Special::kCtaidX:
          v = owner->index[0];
          break;
        case Special::kCtaidY:
          v = owner->index[1];
          break;
        case Special::kCtaidZ:
          v = owner->index[2];
          break;
        case Special::kNctaidX:
          v = launch.grid[0];
          break;
        case Special::kNctaidY:
          v = launch.grid[1];
          break;
        case Special::kNctaidZ:
          v = launch.grid[2];
          break;
        case Special::kLaneid:
          v = l;
          break;
        case Special::kWarpid:
          v = index;
          break;
        case Special::kNwarpid:
          v = owner->warps.size();
          break;
        case Special::kLanemaskEq:
          v = 1u << l;
          break;
        case Special::kLanemaskLt:
          v = (1u << l) - 1;
          break;
        case Special::kLanemaskLe:
          v = (2u << l) - 1;
          break;
        case Special::kLanemaskGe:
          v = ~((1u << l) - 1);
          break;
        case Special::kLanemaskGt:
          v = ~((2u << l) - 1);
          break;
        case Special::kDynamicSmem:
          v = launch.dynamic_shared;
          break;
        case Special::kTotalSmem:
          v = owner->shared.size() - kSharedBase;
          break;
        case Special::kGlobals:
          v = launch.globals_base + s.add;
          break;
      }
      if (s.wide)
        out<uint64_t>(s.slot)[l] = v;
      else
        out<uint32_t>(s.slot)[l] = static_cast<uint32_t>(v);
    }
  }
}

void Warp::save_pc() {
  for (uint32_t l = 0; l < kLanes; ++l)
    if (active >> l & 1) lane_pc[l] = pc;
}

// Lanes that have to wait for the others of their warp at this pc.
void Warp::park() {
  if (!diverged) {
    diverged = true;
    for (uint32_t& p : lane_pc) p = pc;
  }
  save_pc();
  parked |= active;
  signal = Signal::kSelect;
}

void Warp::select() {
  if (!live) {
    active = 0;
    return;
  }
  if (!diverged) return;
  uint32_t candidates = live & ~parked & ~avoid;
  if (!candidates) {
    if (live & ~parked) {  // everybody else failed a poll: let other warps run first
      avoid = 0;
      candidates = live & ~parked;
    } else {
      candidates = live;
      uint32_t first = lane_pc[__builtin_ctz(live)];
      for (uint32_t l = 0; l < kLanes; ++l)
        if ((live >> l & 1) && lane_pc[l] != first)
          throw KernelFault("the warp is diverged: some lanes (" + hex(parked) + " are waiting) stand at " +
                            cta->launch->program->where(*cta->entry, first) + ", others at " +
                            cta->launch->program->where(*cta->entry, lane_pc[l]));
    }
  }
  uint32_t lowest = kNone;
  for (uint32_t l = 0; l < kLanes; ++l)
    if (candidates >> l & 1) lowest = std::min(lowest, lane_pc[l]);
  active = 0;
  limit = kNone;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(live >> l & 1)) continue;
    if (lane_pc[l] == lowest)
      active |= 1u << l;
    else if (lane_pc[l] > lowest)
      limit = std::min(limit, lane_pc[l]);
  }
  parked &= ~active;
  avoid &= ~active;
  pc = lowest;
  if (active == live) {
    diverged = false;
    limit = kNone;
    parked = avoid = 0;
  }
}

void Warp::run(uint64_t quantum) {
  const Entry& entry = *cta->entry;
  const uint32_t size = static_cast<uint32_t>(entry.code.size());
  Checker* checker = entry.uses_wgmma ? cta->checker.get() : nullptr;
  uint64_t end = executed + quantum;
  polled = effect = false;
  if (signal != Signal::kSelect) signal = Signal::kNone;
  while (executed < end) {
    if (pc == limit || signal == Signal::kSelect) {
      if (diverged && signal != Signal::kSelect) save_pc();
      signal = Signal::kNone;
      select();
      if (!live) {
        wait = Wait::kDone;
        effect = true;
        return;
      }
    }
    if (pc >= size) throw KernelFault("the warp runs past the end of the kernel");
    const Instr& in = code[pc];
    uint32_t mask = active;
    if (in.guard >= 0) {
      uint32_t p = pred[in.guard];
      mask &= in.guard_negated ? ~p : p;
    }
    if (in.flags & (kConverged | kMember)) {
      uint32_t needed = live;
      if (in.flags & kMember) {
        needed = mask ? this->in<uint32_t>(in.member)[__builtin_ctz(mask)] & live : 0;
        if (mask && (mask & ~needed))
          throw KernelFault("a lane outside the member mask " + hex(needed) + " executes it");
      }
      if (needed & ~active) {
        park();
        continue;
      }
      if (mask && (needed & ~mask))
        throw KernelFault("its guard lets only the lanes " + hex(mask) + " of " + hex(needed) + " execute it");
    }
    ++executed;
    if (!mask) {
      ++pc;
      continue;
    }
    if (checker && (in.flags & kWgmmaRegs)) checker->touch_registers(*this, pc);
    effect |= (in.flags & kEffect) != 0;
    if (in.flags & kControl) {
      in.fn(*this, in, mask);
      continue;
    }
    in.fn(*this, in, mask);
    ++pc;
    if (signal == Signal::kNone) continue;
    if (diverged) {
      save_pc();
      if (signal == Signal::kYield) {
        signal = Signal::kNone;
        limit = pc;  // choose again when it runs next
        if (live & ~parked & ~avoid) {
          polled = false;
          limit = kNone;
          select();
          continue;
        }
      }
    }
    return;
  }
}

}  // namespace kernelforge::vcuda
