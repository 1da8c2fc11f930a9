// Values to slots of a warp's register file.
#include <algorithm>

#include "decode.h"

namespace kernelforge::vcuda {

// Registers are in SSA form and number thousands; a warp keeps one slot per value that is alive. Lanes of a diverged
// warp do not disturb each other, as every write is masked; so intervals over the text, widened over loops, suffice.
void Decoder::allocate() {
  struct Life {
    uint32_t first = kNone, last = 0;
    uint32_t defs = 0;
    bool def_first = false;
  };
  std::vector<Life> lives(virtuals_.size());
  for (uint32_t i = 0; i < touches_.size(); ++i) {
    for (uint32_t u : touches_[i].uses) {
      Life& l = lives[u & ~kVirtual];
      if (l.first == kNone) l.first = i;
      l.last = i;
    }
    for (uint32_t d : touches_[i].defs) {
      Life& l = lives[d & ~kVirtual];
      if (l.first == kNone) {
        l.first = i;
        l.def_first = entry.code[i].guard < 0;
      }
      ++l.defs;
      l.last = i;
    }
  }
  std::vector<std::pair<uint32_t, uint32_t>> loops;
  for (uint32_t i = 0; i < entry.code.size(); ++i) {
    const Instr& c = entry.code[i];
    if (c.mode == 0xff) {
      for (uint32_t k = 0; k < c.list_size; ++k)
        if (entry.lists[c.list + k] <= i) loops.emplace_back(entry.lists[c.list + k], i);
    }
  }
  for (auto [i, statement] : branches_)
    if (entry.code[i].target <= i) loops.emplace_back(entry.code[i].target, i);
  for (bool changed = true; changed;) {
    changed = false;
    for (auto [begin, end] : loops) {
      for (Life& l : lives) {
        if (l.first == kNone || l.last < begin || l.first > end) continue;
        bool inside = l.first >= begin && l.last <= end;
        if (inside && l.defs == 1 && l.def_first) continue;
        uint32_t first = std::min(l.first, begin), last = std::max(l.last, end);
        changed |= first != l.first || last != l.last;
        l.first = first;
        l.last = last;
      }
    }
  }
  std::vector<uint32_t> slot(virtuals_.size(), kNone);
  uint32_t next = 0;
  auto fresh = [&](bool wide) {
    uint32_t r = next;
    next += wide ? 2 : 1;
    return r;
  };
  for (size_t v = 0; v < virtuals_.size(); ++v)
    if (virtuals_[v].pinned || virtuals_[v].wgmma) slot[v] = fresh(virtuals_[v].wide);
  entry.wgmma_slot.assign(next, 0);
  for (size_t v = 0; v < virtuals_.size(); ++v)
    if (virtuals_[v].wgmma) entry.wgmma_slot[slot[v]] = 1;
  std::vector<uint32_t> order;
  for (uint32_t v = 0; v < virtuals_.size(); ++v)
    if (slot[v] == kNone && lives[v].first != kNone) order.push_back(v);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return lives[a].first < lives[b].first; });
  std::vector<uint32_t> free_narrow, free_wide;
  std::multimap<uint32_t, uint32_t> busy;  // last use -> virtual
  for (uint32_t v : order) {
    while (!busy.empty() && busy.begin()->first < lives[v].first) {
      uint32_t old = busy.begin()->second;
      (virtuals_[old].wide ? free_wide : free_narrow).push_back(slot[old]);
      busy.erase(busy.begin());
    }
    std::vector<uint32_t>& pool = virtuals_[v].wide ? free_wide : free_narrow;
    if (pool.empty()) {
      slot[v] = fresh(virtuals_[v].wide);
    } else {
      slot[v] = pool.back();
      pool.pop_back();
    }
    busy.emplace(lives[v].last, v);
  }
  entry.slots = next;
  entry.wgmma_slot.resize(next, 0);
  auto resolve = [&](uint32_t& op) {
    if (is_virtual(op)) op = slot[op & ~kVirtual];
  };
  for (Instr& i : entry.code) {
    for (uint32_t& op : i.op) resolve(op);
    resolve(i.member);
  }
  for (uint32_t& op : entry.lists) resolve(op);
  for (Constant& c : entry.constants) resolve(c.slot);
  for (SpecialSlot& c : entry.specials) resolve(c.slot);
  entry.touched.resize(entry.code.size());
  for (size_t i = 0; i < touches_.size(); ++i) {
    if (entry.code[i].flags & kWgmma) continue;
    for (const std::vector<uint32_t>* list : {&touches_[i].uses, &touches_[i].defs})
      for (uint32_t v : *list)
        if (virtuals_[v & ~kVirtual].wgmma) {
          entry.touched[i].push_back(slot[v & ~kVirtual]);
          entry.code[i].flags |= kWgmmaRegs;
        }
  }
}

}  // namespace kernelforge::vcuda
