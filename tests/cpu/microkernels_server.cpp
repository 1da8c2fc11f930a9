// The engines behind pipes, for microkernel_libraries.py: one request on standard input, one reply on standard output.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#include "microkernels_harness.cpp"

namespace {

struct Request {
  int32_t what, isa, m, n, k, option, clear;
};

constexpr int kOperands = 5;

bool read_exactly(void* to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

// Memory that ends where an unreadable page begins.
class Guarded {
 public:
  bool read(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    size_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + size_ - page, page, PROT_NONE) != 0) return false;
    data_ = base_ + size_ - page - bytes;
    return read_exactly(data_, bytes);
  }
  ~Guarded() {
    if (base_ != nullptr) munmap(base_, size_);
  }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* base_ = nullptr;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace

int main() {
  Request q;
  while (read_exactly(&q, sizeof q)) {
    int64_t ld[kOperands], bytes[kOperands];
    Guarded x[kOperands];
    if (!read_exactly(ld, sizeof ld) || !read_exactly(bytes, sizeof bytes)) return 1;
    for (int i = 0; i < kOperands; ++i) {
      if (!x[i].read(size_t(bytes[i]))) return 1;
    }
    int32_t status;
    if (q.what == 0) {
      status = harness_mx(q.isa, x[0].as<float>(), ld[0], x[1].as<void>(), ld[1], x[2].as<void>(), ld[2],
                          x[3].as<uint8_t>(), ld[3], x[4].as<uint8_t>(), ld[4], q.m, q.n, q.k, q.option, q.clear);
    } else if (q.what == 1) {
      status = harness_gemm_s8(q.isa, x[0].as<int32_t>(), ld[0], x[1].as<int8_t>(), ld[1], x[2].as<int8_t>(), ld[2],
                               q.m, q.n, q.k, q.option, q.clear);
    } else {
      status = harness_isa_available(q.isa);
    }
    std::fwrite(&status, sizeof status, 1, stdout);
    std::fwrite(x[0].as<uint8_t>(), 1, size_t(bytes[0]), stdout);
    std::fflush(stdout);
  }
  return 0;
}
