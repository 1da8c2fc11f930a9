// Runs the blocks of a compiled kernel over threads: torch's OpenMP team where there is one, else a pool of our own.
#include <dlfcn.h>
#include <pthread.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace py = pybind11;

namespace {

// The wrapper around a generated kernel: runs blocks [begin, end) and returns 0, or the code of the first failure.
using BlockRange = int32_t (*)(void* const* tensors, const int64_t* extents, const int64_t* grid, int64_t begin,
                               int64_t end, uint8_t* workspace);

// Neighbouring blocks: a thread's own part first, so that what one block asks the caches for is there for the next.
struct alignas(64) Part {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

struct Job {
  BlockRange run = nullptr;
  void* const* tensors = nullptr;
  const int64_t* extents = nullptr;
  const int64_t* grid = nullptr;
  int64_t blocks = 0;
  int64_t workspace_bytes = 0;
  std::vector<Part> parts;
  std::atomic<size_t> arrived{0};
  std::atomic<int32_t> failure{0};

  void divide(size_t count) {
    parts = std::vector<Part>(count);
    const auto share = static_cast<int64_t>(count);
    for (int64_t i = 0; i < share; ++i) {
      parts[static_cast<size_t>(i)].next = blocks * i / share;
      parts[static_cast<size_t>(i)].end = blocks * (i + 1) / share;
    }
  }
};

constexpr int32_t kOutOfMemory = -1;
constexpr size_t kAlignment = 64;

// A block's scratch memory; kept by its thread, so that a warm call allocates nothing.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }
  uint8_t* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      memory_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, size_));
      if (memory_ == nullptr) size_ = 0;
    }
    return memory_;
  }

 private:
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
};

void work(Job& job) {
  thread_local Workspace workspace;
  uint8_t* scratch = nullptr;
  if (job.workspace_bytes > 0) {
    scratch = workspace.reserve(static_cast<size_t>(job.workspace_bytes));
    if (scratch == nullptr) {
      job.failure = kOutOfMemory;
      return;
    }
  }
  // Whoever has done its own part helps with the others', block by block.
  const size_t own = job.arrived.fetch_add(1, std::memory_order_relaxed), count = job.parts.size();
  for (size_t i = 0; i < count; ++i) {
    Part& part = job.parts[(own + i) % count];
    for (int64_t block; (block = part.next.fetch_add(1, std::memory_order_relaxed)) < part.end;) {
      const int32_t code = job.run(job.tensors, job.extents, job.grid, block, block + 1, scratch);
      if (code != 0) job.failure = code;
    }
  }
}

// Workers sleep between jobs. One job runs at a time; a second caller waits its turn.
class Pool {
 public:
  void run(Job& job, int threads) {
    const std::lock_guard<std::mutex> turn(turn_);
    const int helpers = threads - 1;
    if (helpers > 0) {
      while (static_cast<int>(workers_.size()) < helpers) {
        const int index = static_cast<int>(workers_.size());
        workers_.emplace_back([this, index, seen = generation_] { serve(index, seen); });
      }
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        job_ = &job;
        wanted_ = helpers;
        running_ = helpers;
        ++generation_;
      }
      wake_.notify_all();
    }
    work(job);
    if (helpers > 0) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return running_ == 0; });
      job_ = nullptr;
    }
  }

 private:
  void serve(int index, uint64_t seen) {
    for (;;) {
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        if (index >= wanted_) continue;
        job = job_;
      }
      work(*job);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int wanted_ = 0, running_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: workers wait in it until the process ends.
Pool* pool = new Pool;

// The entry that compilers emit for `#pragma omp parallel`. torch brings the library and keeps its team warm: on the
// same team, kernels and torch's own ops do not fight for cores.
using OpenMpParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
OpenMpParallel find_openmp() { return reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel")); }
OpenMpParallel openmp = nullptr;
bool forked = false;

// A forked child has none of the threads: OpenMP would wait for its team for ever, a new pool starts over.
void after_fork() {
  pool = new Pool;
  forked = true;
}

void run_blocks(Job& job, int threads) {
  const auto useful = static_cast<unsigned>(std::max<int64_t>(std::min<int64_t>(threads, job.blocks), 1));
  job.divide(useful);
  if (useful <= 1) return work(job);
  if (openmp == nullptr && !forked) openmp = find_openmp();
  if (openmp == nullptr || forked) return pool->run(job, static_cast<int>(useful));
  openmp([](void* data) { work(*static_cast<Job*>(data)); }, &job, useful, 0);
}

// A loaded kernel. `function` is the address of its block-range wrapper in a library that outlives this object.
class Kernel {
 public:
  Kernel(uintptr_t function, size_t tensors, size_t extents, int64_t workspace_bytes)
      : run_(reinterpret_cast<BlockRange>(function)),
        tensors_(tensors),
        extents_(extents),
        workspace_bytes_(workspace_bytes) {}

  void launch(const py::tuple& pointers, const py::tuple& extents, const py::tuple& grid, int threads) const {
    if (pointers.size() != tensors_ || extents.size() != extents_ || grid.size() > 3)
      throw std::invalid_argument("kernel takes " + std::to_string(tensors_) + " tensors and " +
                                  std::to_string(extents_) + " extents");
    std::vector<void*> tensor(tensors_);
    for (size_t i = 0; i < tensors_; ++i) tensor[i] = reinterpret_cast<void*>(pointers[i].cast<uintptr_t>());
    std::vector<int64_t> extent(extents_);
    for (size_t i = 0; i < extents_; ++i) extent[i] = extents[i].cast<int64_t>();
    int64_t shape[3] = {1, 1, 1};
    for (size_t i = 0; i < grid.size(); ++i) shape[i] = grid[i].cast<int64_t>();
    Job job;
    job.run = run_;
    job.tensors = tensor.data();
    job.extents = extent.data();
    job.grid = shape;
    job.blocks = shape[0] * shape[1] * shape[2];
    job.workspace_bytes = workspace_bytes_;
    if (job.blocks > 0) {
      const py::gil_scoped_release release;
      run_blocks(job, threads);
    }
    if (job.failure == kOutOfMemory) throw std::bad_alloc();
    if (job.failure != 0) throw std::runtime_error("kernel failed with code " + std::to_string(job.failure.load()));
  }

 private:
  BlockRange run_;
  size_t tensors_, extents_;
  int64_t workspace_bytes_;
};

}  // namespace

PYBIND11_MODULE(_launch, module) {
  module.doc() = "Runs compiled CPU kernels over threads.";
  pthread_atfork(nullptr, nullptr, after_fork);
  py::class_<Kernel>(module, "Kernel")
      .def(py::init<uintptr_t, size_t, size_t, int64_t>(), py::arg("function"), py::arg("tensors"), py::arg("extents"),
           py::arg("workspace_bytes"))
      .def("launch", &Kernel::launch, py::arg("pointers"), py::arg("extents"), py::arg("grid"), py::arg("threads"),
           "Run every block; pointers and extents in the order of the kernel's signature.");
}
