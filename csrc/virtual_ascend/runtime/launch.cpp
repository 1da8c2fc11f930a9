// Runs the blocks of a launch on host threads and hands errors back as text.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "machine.h"

namespace kf {
namespace {

std::atomic_flag atomics = ATOMIC_FLAG_INIT;

}  // namespace

void atomic_begin() {
  while (atomics.test_and_set(std::memory_order_acquire)) {
  }
  Machine::current()->in_atomic = true;
}
void atomic_end() {
  Machine::current()->in_atomic = false;
  atomics.clear(std::memory_order_release);
}

}  // namespace kf

extern "C" {

struct KfRegion {
  const char* name;
  void* base;
  uint64_t bytes;
  int tracked;
};

/// Runs `blocks` blocks of the kernel behind `entry`. Returns 0, or 1 with the text of the lowest block's error.
int kf_launch(void (*entry)(void**), void** arguments, const KfRegion* regions, int region_count, int blocks, int kind,
              int schedule, uint64_t seed, int check, int rounded, int threads, char* error, uint64_t error_bytes) {
  std::vector<kf::GlobalRegion> memory;
  for (int i = 0; i < region_count; i++) {
    memory.emplace_back(regions[i].name, static_cast<uint8_t*>(regions[i].base), regions[i].bytes,
                        regions[i].tracked != 0);
  }
  std::vector<std::unique_ptr<uint16_t, decltype(&std::free)>> writers;
  for (auto& region : memory) {
    if (check == 0 || blocks < 2) break;
    // Zero pages: memory is taken only for what is stored.
    writers.emplace_back(static_cast<uint16_t*>(std::calloc(region.bytes, sizeof(uint16_t))), &std::free);
    region.writers = writers.back().get();
  }
  kf::Options options;
  options.kind = static_cast<kf::KernelKind>(kind);
  options.schedule = static_cast<kf::Schedule>(schedule);
  options.seed = seed;
  options.check = check != 0;
  options.rounded = rounded != 0;
  std::atomic<int> next{0};
  std::mutex first_error;
  std::string text;
  int failed_block = blocks;
  auto work = [&] {
    try {
      kf::Machine machine(memory, entry, arguments, options);
      for (int block; (block = next.fetch_add(1)) < blocks;) {
        try {
          machine.run_block(block);
        } catch (const std::exception& fault) {
          std::lock_guard<std::mutex> lock(first_error);
          if (block < failed_block) {
            failed_block = block;
            text = "block " + std::to_string(block) + ": " + fault.what();
          }
          next = blocks;
        }
      }
    } catch (const std::exception& failure) {
      std::lock_guard<std::mutex> lock(first_error);
      if (text.empty()) text = failure.what();
    }
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < std::min(threads, blocks); i++) pool.emplace_back(work);
  work();
  for (auto& thread : pool) thread.join();
  if (text.empty()) return 0;
  std::strncpy(error, text.c_str(), error_bytes - 1);
  error[error_bytes - 1] = '\0';
  return 1;
}
}
