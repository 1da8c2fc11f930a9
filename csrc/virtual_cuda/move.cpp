// mov, packing and unpacking, address-space conversions, control flow.
#include "lane_ops.h"

namespace kernelforge::vcuda {
namespace {

template <class S>
void run_mov(Warp& w, const Instr& in, uint32_t mask) {
  const S* a = w.in<S>(in.op[1]);
  if (mask == kFullMask) {
    std::memmove(w.out<S>(in.op[0]), a, kLanes * sizeof(S));
  } else {
    S out[kLanes];
    std::memcpy(out, a, sizeof(out));
    commit(w, in.op[0], out, mask);
  }
}

// mov.b32 d, {a, b} and its like: imm bits per part.
template <class D>
void run_pack(Warp& w, const Instr& in, uint32_t mask) {
  D out[kLanes] = {};
  uint32_t bits = static_cast<uint32_t>(in.imm);
  for (uint32_t k = 0; k < in.list_size; ++k) {
    const uint32_t* a = w.in<uint32_t>(w.lists[in.list + k]);
    D part = bits >= 32 ? static_cast<D>(0xffffffffu) : static_cast<D>((1u << bits) - 1);
    for (uint32_t l = 0; l < kLanes; ++l) out[l] |= (static_cast<D>(a[l]) & part) << (bits * k);
  }
  commit(w, in.op[0], out, mask);
}

template <class S>
void run_unpack(Warp& w, const Instr& in, uint32_t mask) {
  S a[kLanes];
  std::memcpy(a, w.in<S>(in.op[1]), sizeof(a));
  uint32_t bits = static_cast<uint32_t>(in.imm);
  for (uint32_t k = 0; k < in.list_size; ++k) {
    uint32_t out[kLanes];
    uint32_t part = bits >= 32 ? 0xffffffffu : (1u << bits) - 1;
    for (uint32_t l = 0; l < kLanes; ++l) out[l] = static_cast<uint32_t>(a[l] >> (bits * k)) & part;
    commit(w, w.lists[in.list + k], out, mask);
  }
}

// cvta: imm is the window, mode 1 subtracts (to a space). Global addresses are generic addresses.
template <class S>
void run_cvta(Warp& w, const Instr& in, uint32_t mask) {
  const S* a = w.in<S>(in.op[1]);
  S out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l)
    out[l] = static_cast<S>(in.mode ? a[l] - static_cast<S>(in.imm) : a[l] + static_cast<S>(in.imm));
  commit(w, in.op[0], out, mask);
}

void run_isspacep(Warp& w, const Instr& in, uint32_t mask) {
  const uint64_t* a = w.in<uint64_t>(in.op[1]);
  uint32_t out = 0;
  for (uint32_t l = 0; l < kLanes; ++l)
    out |= static_cast<uint32_t>((a[l] & kWindowMask) == static_cast<uint64_t>(in.imm)) << l;
  w.set_predicate(in.op[0], out, mask);
}

// mapa: the only CTA of the cluster is this one.
void run_mapa(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t *a = w.in<uint32_t>(in.op[1]), *rank = w.in<uint32_t>(in.op[2]);
  for (uint32_t l = 0; l < kLanes; ++l)
    if ((mask >> l & 1) && rank[l] != 0)
      throw KernelFault("mapa: CTA " + std::to_string(rank[l]) + " of a cluster of one");
  uint32_t out[kLanes];
  std::memcpy(out, a, sizeof(out));
  commit(w, in.op[0], out, mask);
}

void run_nothing(Warp&, const Instr&, uint32_t) {}

void diverge(Warp& w) {
  if (!w.diverged) {
    w.diverged = true;
    for (uint32_t& p : w.lane_pc) p = w.pc;
  }
}

void jump(Warp& w, uint32_t taken, const uint32_t* targets, uint32_t single) {
  if (taken == w.active && !targets) {
    w.pc = single;
    if (w.diverged) {
      w.save_pc();
      w.signal = Signal::kSelect;
    }
    return;
  }
  diverge(w);
  for (uint32_t l = 0; l < kLanes; ++l)
    if (w.active >> l & 1) w.lane_pc[l] = taken >> l & 1 ? (targets ? targets[l] : single) : w.pc + 1;
  w.signal = Signal::kSelect;
}

void run_bra(Warp& w, const Instr& in, uint32_t mask) { jump(w, mask, nullptr, in.target); }

void run_brx(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t* a = w.in<uint32_t>(in.op[0]);
  uint32_t targets[kLanes] = {};
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if (a[l] >= in.list_size)
      throw KernelFault("brx.idx: index " + std::to_string(a[l]) + " of " + std::to_string(in.list_size) + " targets");
    targets[l] = w.lists[in.list + a[l]];
  }
  jump(w, mask, targets, 0);
}

void run_exit(Warp& w, const Instr&, uint32_t mask) {
  w.effect = true;
  if (mask == w.active && !w.diverged) {
    w.live &= ~mask;
    w.signal = Signal::kSelect;
    return;
  }
  diverge(w);
  for (uint32_t l = 0; l < kLanes; ++l)
    if (w.active >> l & 1) w.lane_pc[l] = w.pc + 1;
  w.live &= ~mask;
  w.parked &= ~mask;
  w.signal = Signal::kSelect;
}

void run_trap(Warp&, const Instr&, uint32_t mask) { throw KernelFault("the kernel trapped (lanes " + hex(mask) + ")"); }

Space space_of(const Decoder& d) {
  if (d.has("shared") || d.has("shared::cta") || d.has("shared::cluster")) return Space::kShared;
  if (d.has("global") || d.has("const")) return Space::kGlobal;
  if (d.has("local")) return Space::kLocal;
  if (d.has("param") || d.has("param::entry")) return Space::kParam;
  return Space::kGeneric;
}

uint64_t window(Space s) {
  switch (s) {
    case Space::kShared:
      return kSharedWindow;
    case Space::kLocal:
      return kLocalWindow;
    case Space::kParam:
      return kParamWindow;
    default:
      return 0;
  }
}

bool decode_mov(Decoder& d) {
  Ty t = d.last_type();
  bool wide = bits_of(t) == 64;
  const std::string &dst = d.argument(0), &src = d.argument(1);
  if (bits_of(t) > 64) d.fail("128-bit mov is not supported");
  if (!src.empty() && src[0] == '{') {
    std::vector<uint32_t> parts;
    std::vector<std::string> names = d.braces(src);
    d.in.imm = bits_of(t) / static_cast<int64_t>(names.size());
    for (const std::string& n : names) parts.push_back(d.source(n, d.in.imm == 32 ? Ty::kB32 : Ty::kB16));
    int64_t bits = d.in.imm;
    d.in.imm = bits;
    d.set_list(parts);
    d.in.op[0] = d.destination(dst, t);
    d.emit_as(wide ? run_pack<uint64_t> : run_pack<uint32_t>);
  } else if (!dst.empty() && dst[0] == '{') {
    std::vector<uint32_t> parts;
    std::vector<std::string> names = d.braces(dst);
    int64_t bits = bits_of(t) / static_cast<int64_t>(names.size());
    d.in.op[1] = d.source(src, t);
    for (const std::string& n : names) parts.push_back(d.destination(n, bits == 32 ? Ty::kB32 : Ty::kB16));
    d.in.imm = bits;
    d.set_list(parts);
    d.emit_as(wide ? run_unpack<uint64_t> : run_unpack<uint32_t>);
  } else {
    d.in.op[0] = d.destination(dst, t);
    d.in.op[1] = d.source(src, t);
    d.emit_as(wide ? run_mov<uint64_t> : run_mov<uint32_t>);
  }
  return true;
}

}  // namespace

bool decode_move(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op == "mov" && !d.has("pred")) return decode_mov(d);
  if (op == "cvta") {
    Ty t = d.last_type();
    d.in.mode = d.has("to");
    d.in.imm = static_cast<int64_t>(window(space_of(d)));
    d.in.op[0] = d.destination(size_t{0}, t);
    d.in.op[1] = d.source(1, t);
    if (bits_of(t) != 64) d.fail("only 64-bit addresses");
    d.emit_as(run_cvta<uint64_t>);
    return true;
  }
  if (op == "isspacep") {
    d.in.imm = static_cast<int64_t>(window(space_of(d)));
    d.in.op[0] = d.predicate_destination(d.argument(0));
    d.in.op[1] = d.source(1, Ty::kU64);
    d.emit_as(run_isspacep);
    return true;
  }
  if (op == "mapa") {
    if (d.last_type() != Ty::kU32) d.fail("only shared::cluster.u32");
    d.in.op[0] = d.destination(size_t{0}, Ty::kU32);
    d.in.op[1] = d.source(1, Ty::kU32);
    d.in.op[2] = d.source(2, Ty::kU32);
    d.emit_as(run_mapa);
    return true;
  }
  return false;
}

bool decode_control(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op == "bra") {
    d.in.flags |= kControl;
    d.branches_.emplace_back(static_cast<uint32_t>(d.entry.code.size()),
                             d.entry.text.find_label(d.s->scope, d.argument(0)));
    d.emit_as(run_bra);
    return true;
  }
  if (op == "brx") {
    d.in.flags |= kControl;
    d.in.op[0] = d.source(size_t{0}, Ty::kU32);
    const std::vector<std::string>* targets = nullptr;
    for (int s = d.s->scope; s >= 0 && !targets; s = d.entry.text.scopes[static_cast<size_t>(s)].parent) {
      auto& all = d.entry.text.scopes[static_cast<size_t>(s)].branch_targets;
      auto it = all.find(d.argument(1));
      if (it != all.end()) targets = &it->second;
    }
    if (!targets) d.fail("no .branchtargets '" + d.argument(1) + "'");
    std::vector<uint32_t> statements;
    for (const std::string& label : *targets) statements.push_back(d.entry.text.find_label(d.s->scope, label));
    d.set_list(statements);
    d.in.mode = 0xff;
    d.emit_as(run_brx);
    return true;
  }
  if (op == "ret" || op == "exit") {
    d.in.flags |= kControl | kEffect;
    d.emit_as(run_exit);
    return true;
  }
  if (op == "trap" || op == "brkpt") {
    d.emit_as(run_trap);
    return true;
  }
  for (const char* ignored :
       {"prefetch", "prefetchu", "nanosleep", "setmaxnreg", "griddepcontrol", "discard", "applypriority", "pmevent"}) {
    if (op != ignored) continue;
    if (op == "setmaxnreg") d.in.flags |= kConverged;
    d.emit_as(run_nothing);
    return true;
  }
  return false;
}

}  // namespace kernelforge::vcuda
