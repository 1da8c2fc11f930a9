// Memory spaces with what the checkers know about every byte: written yet or not, and by whom accessed when.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace kf {

constexpr int kPipes = 7;
constexpr int kCores = 3;  // one cube core, two vector cores
constexpr int kAgents = kCores * kPipes;

/// What an agent (a pipe of a core) knows: of every agent, the last step that happened before.
using Clock = std::array<uint32_t, kAgents>;

inline void join(Clock& into, const Clock& other) {
  for (int i = 0; i < kAgents; i++) into[i] = std::max(into[i], other[i]);
}

/// One step of an agent, as an access to memory sees it.
struct Step {
  int agent;
  uint32_t time;
  Clock before;
};

/// Who touched a granule of memory.
struct Cell {
  static constexpr int kReaders = 4;
  uint32_t write_time = 0;
  uint32_t read_time[kReaders] = {};
  uint8_t writer = 0xFF;
  uint8_t reader[kReaders] = {0xFF, 0xFF, 0xFF, 0xFF};
};

struct Conflict {
  bool found = false;
  bool earlier_was_write = false;
  int agent = 0;
  uint32_t time = 0;
};

inline bool ordered(const Step& step, int agent, uint32_t time) {
  return step.before[agent] >= time || (agent == step.agent && time == step.time);
}

inline Conflict touch(Cell& cell, const Step& step, bool write) {
  if (cell.writer != 0xFF && !ordered(step, cell.writer, cell.write_time)) {
    return {true, true, cell.writer, cell.write_time};
  }
  if (write) {
    for (int i = 0; i < Cell::kReaders; i++) {
      if (cell.reader[i] != 0xFF && !ordered(step, cell.reader[i], cell.read_time[i])) {
        return {true, false, cell.reader[i], cell.read_time[i]};
      }
      cell.reader[i] = 0xFF;
    }
    cell.writer = static_cast<uint8_t>(step.agent);
    cell.write_time = step.time;
    return {};
  }
  int slot = Cell::kReaders - 1;
  for (int i = 0; i < Cell::kReaders; i++) {
    if (cell.reader[i] == step.agent || cell.reader[i] == 0xFF) {
      slot = i;
      break;
    }
  }
  cell.reader[slot] = static_cast<uint8_t>(step.agent);
  cell.read_time[slot] = step.time;
  return {};
}

/// Accesses of the threads of one vector function to one byte since the last barrier.
struct Lane {
  uint32_t write_epoch = 0, read_epoch = 0;
  uint16_t writer = 0, reader = 0;
  static constexpr uint16_t kMany = 0xFFFF;
};

/// An on-chip memory.
class Space {
 public:
  Space(std::string name, std::size_t bytes, std::size_t granule = 4)
      : name_(std::move(name)), bytes_(bytes), granule_(granule), data_(new uint8_t[bytes + 64]) {}

  /// Forgets everything: `seed` decides the garbage that unwritten memory holds.
  void poison(uint32_t seed, bool checked) {
    uint32_t word = seed * 2654435761u | 0x80808080u;
    for (std::size_t i = 0; i + 4 <= bytes_; i += 4) std::memcpy(base() + i, &word, 4);
    if (!checked) return;
    written_.assign(bytes_, 0);
    cells_.assign(bytes_ / granule_ + 1, Cell{});
    if (lanes_wanted_) lanes_.assign(bytes_, Lane{});
  }
  void want_lanes() { lanes_wanted_ = true; }

  uint8_t* base() const {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(data_.get()) + 63) & ~uintptr_t{63});
  }
  std::size_t size() const { return bytes_; }
  const std::string& name() const { return name_; }
  bool contains(const void* address) const { return address >= base() && address < base() + bytes_; }

  Conflict access(std::size_t offset, std::size_t bytes, const Step& step, bool write) {
    for (std::size_t g = offset / granule_; g <= (offset + bytes - 1) / granule_; g++) {
      Conflict conflict = touch(cells_[g], step, write);
      if (conflict.found) return conflict;
    }
    return {};
  }
  void mark_written(std::size_t offset, std::size_t bytes) { std::memset(&written_[offset], 1, bytes); }
  /// Offset of the first unwritten byte of a range, or -1.
  int64_t first_unwritten(std::size_t offset, std::size_t bytes) const {
    const void* hit = std::memchr(&written_[offset], 0, bytes);
    return hit ? static_cast<const uint8_t*>(hit) - written_.data() : -1;
  }
  Lane& lane(std::size_t offset) { return lanes_[offset]; }

 private:
  std::string name_;
  std::size_t bytes_, granule_;
  std::unique_ptr<uint8_t[]> data_;
  std::vector<uint8_t> written_;
  std::vector<Cell> cells_;
  std::vector<Lane> lanes_;
  bool lanes_wanted_ = false;
};

/// A tensor or workspace in global memory. Cells are made page by page, and only where asked for.
struct GlobalRegion {
  static constexpr std::size_t kPage = 4096;
  std::string name;
  uint8_t* base = nullptr;
  std::size_t bytes = 0;
  bool tracked = false;
  uint16_t* writers = nullptr;  // with checks: per byte 1 + the block that stored it, 0 none; shared by all blocks
  std::vector<std::unique_ptr<Cell[]>> pages;

  GlobalRegion(std::string name_, uint8_t* base_, std::size_t bytes_, bool tracked_)
      : name(std::move(name_)), base(base_), bytes(bytes_), tracked(tracked_) {}
  GlobalRegion(const GlobalRegion& other) : GlobalRegion(other.name, other.base, other.bytes, other.tracked) {
    writers = other.writers;
  }
  GlobalRegion(GlobalRegion&&) = default;

  bool contains(const void* address) const { return address >= base && address < base + bytes; }
  Conflict access(std::size_t offset, std::size_t count, const Step& step, bool write) {
    if (pages.empty()) pages.resize(bytes / kPage + 1);
    for (std::size_t i = offset; i < offset + count; i++) {
      auto& page = pages[i / kPage];
      if (!page) page.reset(new Cell[kPage]);
      Conflict conflict = touch(page[i % kPage], step, write);
      if (conflict.found) return conflict;
    }
    return {};
  }

  /// Another block that stored one of these bytes, or -1. A store leaves the mark of its block.
  int other_writer(std::size_t offset, std::size_t count, int block, bool write) {
    auto self = static_cast<uint16_t>(block + 1);
    for (std::size_t i = offset; i < offset + count; i++) {
      uint16_t found = __atomic_load_n(writers + i, __ATOMIC_RELAXED);
      if (found == 0 && write)
        __atomic_compare_exchange_n(writers + i, &found, self, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
      if (found != 0 && found != self) return found - 1;
    }
    return -1;
  }
};

}  // namespace kf
