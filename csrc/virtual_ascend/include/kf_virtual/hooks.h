// What generated code calls in the virtual machine (runtime/). Plain data only, so that this header stays light.
#pragma once

#include <cstddef>
#include <cstdint>

enum kf_pipe : int { PIPE_S, PIPE_V, PIPE_M, PIPE_MTE1, PIPE_MTE2, PIPE_MTE3, PIPE_FIX, PIPE_ALL };

namespace kf {

/// Position of a call in the generated source.
struct Where {
  const char* file;
  int line;
};

/// A vector function with its arguments, ready to run: `run` executes threads until `next` says there are none left.
struct VectorFunction {
  void (*run)(void* arguments, bool (*next)());
  void (*drop)(void* arguments);
  void* arguments;
  int x, y, z;
};

struct Thread {
  unsigned x, y, z;
};

enum class Lanes { kShuffle, kShuffleXor, kShuffleUp, kShuffleDown };

uint8_t* ub_base();
bool is_cube();
int sub_block();

void flag_set(int source, int target, int event, Where where);
void flag_wait(int source, int target, int event, Where where);
void intra_arrive(int pipe, int id, Where where);
void intra_wait(int pipe, int id, Where where);
void buffer_lock(int pipe, int id, Where where);
void buffer_unlock(int pipe, int id, Where where);
void pipe_barrier(int pipe, Where where);

void gm_to_ub(void* ub, const void* gm, uint32_t rows, uint32_t row_bytes, uint32_t pad_bytes, int64_t gm_stride,
              int64_t ub_stride, Where where);
void set_pad(uint64_t value);
void ub_to_gm(void* gm, const void* ub, uint32_t rows, uint32_t row_bytes, int64_t gm_stride, int64_t ub_stride,
              Where where);
void set_nz_parameters(uint32_t c0_stride);
void gm_to_l1(void* l1, const void* gm, int element, int64_t gm_stride, uint32_t n, uint32_t d, bool transposed,
              Where where);
void fill_l1(void* l1, int element, uint32_t value, uint64_t repeat, uint64_t blocks, uint64_t gap, Where where);
void ub_to_l1(void* l1, const void* ub, uint32_t bursts, uint32_t length, uint32_t ub_gap, uint32_t l1_gap,
              Where where);
void l1_to_l0(bool is_b, void* l0, const void* l1, uint32_t m_start, uint32_t k_start, uint32_t m_step, uint32_t k_step,
              uint32_t l1_stride, uint32_t l0_stride, Where where);
void mmad_int8(void* l0c, const void* l0a, const void* l0b, uint32_t m, uint32_t k, uint32_t n, bool clear,
               Where where);
/// bfloat16 into float: binary32, products added to the sum in ascending k. Only in launches whose sums may round.
void mmad_bf16(void* l0c, const void* l0a, const void* l0b, uint32_t m, uint32_t k, uint32_t n, bool clear,
               Where where);
void l0c_to_ub(void* ub, const void* l0c, uint32_t n, uint32_t m, uint32_t ub_stride, uint32_t l0c_stride,
               int sub_block, int dual, Where where);
void l0c_to_gm(void* gm, const void* l0c, uint32_t n, uint32_t m, uint32_t gm_stride, uint32_t l0c_stride, Where where);
uint64_t scalar_load(const void* gm, int bytes, Where where);
void scalar_store(void* gm, uint64_t value, int bytes, Where where);

void issue_vector_function(VectorFunction function, Where where);
void thread_barrier();
uint32_t exchange_lanes(Lanes kind, uint32_t value, int operand);
uint64_t vote(bool predicate);
[[noreturn]] void unsupported(const char* what, Where where);

/// Serializes an atomic on one address against other blocks of the launch.
void atomic_begin();
void atomic_end();

}  // namespace kf

#define KF_TLS thread_local __attribute__((tls_model("initial-exec")))
extern KF_TLS kf::Thread threadIdx;
extern KF_TLS kf::Thread blockDim;
extern KF_TLS int32_t block_idx;

#define KF_HERE         \
  kf::Where where = {   \
      __builtin_FILE(), \
      __builtin_LINE(), \
  }
