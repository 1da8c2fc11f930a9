// Exchanges between the lanes of a warp.
#include "lane_ops.h"

namespace kernelforge::vcuda {
namespace {

enum Shuffle : uint8_t { kUp, kDown, kBfly, kIdx };

// shfl.sync d|p, a, b, c, member. c: bits 0-4 the clamp, bits 8-12 the segment mask.
void run_shfl(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[2]), *b = w.in<uint32_t>(in.op[3]), *c = w.in<uint32_t>(in.op[4]);
  const uint32_t* member = w.in<uint32_t>(in.member);
  uint32_t out[kLanes], valid = 0;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    uint32_t clamp = c[l] & 31, segment = c[l] >> 8 & 31, distance = b[l] & 31;
    int32_t max_lane = static_cast<int32_t>((l & segment) | (clamp & ~segment & 31)),
            min_lane = static_cast<int32_t>(l & segment);
    int32_t from = 0;
    bool ok = false;
    switch (in.mode) {
      case kUp:
        from = static_cast<int32_t>(l) - static_cast<int32_t>(distance), ok = from >= max_lane;
        break;
      case kDown:
        from = static_cast<int32_t>(l + distance), ok = from <= max_lane;
        break;
      case kBfly:
        from = static_cast<int32_t>(l ^ distance), ok = from <= max_lane;
        break;
      case kIdx:
        from = min_lane | static_cast<int32_t>(distance & ~segment), ok = from <= max_lane;
        break;
    }
    if (!ok) from = static_cast<int32_t>(l);
    if (ok && !(mask >> from & 1))
      throw KernelFault("shfl: lane " + std::to_string(l) + " reads lane " + std::to_string(from) +
                        ", which does not take part (member mask " + hex(member[l]) + ")");
    out[l] = a[from];
    valid |= static_cast<uint32_t>(ok) << l;
  }
  commit(w, in.op[0], out, mask);
  w.set_predicate(in.op[1], valid, mask);
}

enum Vote : uint8_t { kAll, kAny, kUni, kBallot };

void run_vote(Warp& w, const Instr& in, uint32_t mask) {
  uint32_t p = w.predicate(in.op[1]) & mask;
  bool r = in.mode == kAll ? p == mask : in.mode == kAny ? p != 0 : p == 0 || p == mask;
  w.set_predicate(in.op[0], r ? kFullMask : 0, mask);
}

void run_ballot(Warp& w, const Instr& in, uint32_t mask) {
  uint32_t p = w.predicate(in.op[1]) & mask, out[kLanes];
  for (uint32_t& o : out) o = p;
  commit(w, in.op[0], out, mask);
}

void run_activemask(Warp& w, const Instr& in, uint32_t mask) {
  uint32_t out[kLanes];
  for (uint32_t& o : out) o = mask;
  commit(w, in.op[0], out, mask);
}

template <class S>
void run_match(Warp& w, const Instr& in, uint32_t mask) {  // mode 1: all
  const S* a = w.in<S>(in.op[2]);
  uint32_t out[kLanes] = {}, all = kFullMask;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    for (uint32_t k = 0; k < kLanes; ++k)
      if (mask >> k & 1) a[k] == a[l] ? out[l] |= 1u << k : all = 0;
  }
  if (in.mode)
    for (uint32_t l = 0; l < kLanes; ++l) out[l] = all ? mask : 0;
  commit(w, in.op[0], out, mask);
  w.set_predicate(in.op[1], all, mask);
}

enum Redux : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor };

void run_redux(Warp& w, const Instr& in, uint32_t mask) {  // imm 1: signed
  const uint32_t* a = w.in<uint32_t>(in.op[1]);
  uint32_t r = 0;
  bool first = true;
  auto less = [&in](uint32_t x, uint32_t y) {
    return in.imm ? static_cast<int32_t>(x) < static_cast<int32_t>(y) : x < y;
  };
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if (first) {
      r = a[l];
      first = false;
      continue;
    }
    switch (in.mode) {
      case kAdd:
        r += a[l];
        break;
      case kMin:
        r = less(a[l], r) ? a[l] : r;
        break;
      case kMax:
        r = less(r, a[l]) ? a[l] : r;
        break;
      case kAnd:
        r &= a[l];
        break;
      case kOr:
        r |= a[l];
        break;
      case kXor:
        r ^= a[l];
        break;
    }
  }
  uint32_t out[kLanes];
  for (uint32_t& o : out) o = r;
  commit(w, in.op[0], out, mask);
}

// elect.sync d|p, member: the lowest lane that takes part is the leader.
void run_elect(Warp& w, const Instr& in, uint32_t mask) {
  uint32_t leader = static_cast<uint32_t>(__builtin_ctz(mask)), out[kLanes];
  for (uint32_t& o : out) o = leader;
  if (in.op[0] != kNone) commit(w, in.op[0], out, mask);
  w.set_predicate(in.op[1], 1u << leader, mask);
}

void run_warp_barrier(Warp&, const Instr&, uint32_t) {}

// "d|p" with either part optional.
void result_pair(Decoder& d, Ty t) {
  const std::string& text = d.argument(0);
  size_t bar = text.find('|');
  d.in.op[0] = d.destination(trim(text.substr(0, bar)), t);
  if (bar != std::string::npos) d.in.op[1] = d.predicate_destination(trim(text.substr(bar + 1)));
}

void member(Decoder& d, size_t k) {
  d.in.member = d.source(k, Ty::kB32);
  d.in.flags |= kMember;
}

}  // namespace

bool decode_warp(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op == "shfl") {
    if (!d.has("sync")) d.fail("shfl without .sync");
    const char* names[] = {"up", "down", "bfly", "idx"};
    for (uint8_t k = 0; k < 4; ++k)
      if (d.has(names[k])) d.in.mode = k;
    for (int k = 1; k <= 3; ++k) d.in.op[k + 1] = d.source(static_cast<size_t>(k), Ty::kB32);
    member(d, 4);
    result_pair(d, Ty::kB32);
    d.emit_as(run_shfl);
    return true;
  }
  if (op == "vote") {
    if (!d.has("sync")) d.fail("vote without .sync");
    d.in.op[1] = d.predicate_source(d.argument(1));
    member(d, 2);
    if (d.has("ballot")) {
      d.in.op[0] = d.destination(size_t{0}, Ty::kB32);
      d.emit_as(run_ballot);
      return true;
    }
    d.in.mode = d.has("all") ? kAll : d.has("any") ? kAny : kUni;
    d.in.op[0] = d.predicate_destination(d.argument(0));
    d.emit_as(run_vote);
    return true;
  }
  if (op == "activemask") {
    d.in.op[0] = d.destination(size_t{0}, Ty::kB32);
    d.emit_as(run_activemask);
    return true;
  }
  if (op == "match") {
    Ty t = d.last_type();
    d.in.mode = d.has("all");
    d.in.op[2] = d.source(1, t);
    member(d, 2);
    result_pair(d, Ty::kB32);
    d.emit_as(bits_of(t) == 64 ? run_match<uint64_t> : run_match<uint32_t>);
    return true;
  }
  if (op == "redux") {
    Ty t = d.last_type();
    if (is_float(t)) d.fail("type not supported");
    const char* names[] = {"add", "min", "max", "and", "or", "xor"};
    for (uint8_t k = 0; k < 6; ++k)
      if (d.has(names[k])) d.in.mode = k;
    d.in.imm = is_signed(t);
    d.in.op[0] = d.destination(size_t{0}, t);
    d.in.op[1] = d.source(1, t);
    member(d, 2);
    d.emit_as(run_redux);
    return true;
  }
  if (op == "elect") {
    member(d, 1);
    result_pair(d, Ty::kB32);
    d.emit_as(run_elect);
    return true;
  }
  if (op == "bar" && d.has("warp")) {
    member(d, 0);
    d.emit_as(run_warp_barrier);
    return true;
  }
  return false;
}

}  // namespace kernelforge::vcuda
