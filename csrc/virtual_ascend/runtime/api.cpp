// What the asc_* calls do: check their arguments, then queue an operation on a pipe.
#include <cstring>

#include "machine.h"

namespace kf {
namespace {

Machine& machine() { return *Machine::current(); }

Op make(OpKind kind, const char* name, Where where) {
  Op op;
  op.kind = kind;
  op.name = name;
  op.where = where;
  return op;
}

void queue(int pipe, const char* name, Where where, std::function<void()> work) {
  Op op = make(OpKind::kWork, name, where);
  op.work = std::move(work);
  machine().issue(pipe, std::move(op));
}

[[noreturn]] void refuse(const char* name, Where where, const std::string& why) {
  machine().fail(std::string(name) + " at " + machine().describe(where) + ": " + why);
}

void check_pipe(const char* name, int pipe, Where where) {
  if (pipe < 0 || pipe >= kPipes) refuse(name, where, "no such pipe");
}

void check_queued_pipe(const char* name, int pipe, Where where) {
  check_pipe(name, pipe, where);
  if (pipe == PIPE_S) refuse(name, where, "the virtual device does not implement this on the scalar pipe");
}

int event_key(const char* name, int source, int target, int event, Where where) {
  check_pipe(name, source, where);
  check_pipe(name, target, where);
  if (event < 0 || event >= kEvents) refuse(name, where, "event " + std::to_string(event) + " is not 0 to 7");
  return (source * kPipes + target) * kEvents + event;
}

void require_vector_core(const char* name, Where where) {
  if (machine().core().index == 0) refuse(name, where, "issued on a cube core");
}
void require_cube_core(const char* name, Where where) {
  if (machine().core().index != 0) refuse(name, where, "issued on a vector core");
}

constexpr int64_t kUbAlignment = 32;

int64_t aligned_ub(const char* name, const void* ub, Where where) {
  int64_t offset = machine().ub_offset(ub);
  if (offset % kUbAlignment != 0) {
    refuse(name, where, "UB address " + std::to_string(offset) + " is not a multiple of 32");
  }
  return offset;
}

int64_t offset_of(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer)); }

void issue(OpKind kind, const char* name, int pipe, int key, int b, Where where) {
  Op op = make(kind, name, where);
  op.a = key;
  op.b = b;
  machine().issue(pipe, std::move(op));
}

}  // namespace

uint8_t* ub_base() { return machine().ub_base(); }
bool is_cube() { return machine().core().index == 0; }
int sub_block() { return machine().core().index - 1; }
void unsupported(const char* what, Where where) { refuse(what, where, "the virtual device does not implement this"); }

// -- Synchronization
// ---------------------------------------------------------------------------------------------------

void flag_set(int source, int target, int event, Where where) {
  int key = event_key("asc_sync_notify", source, target, event, where);
  if (source == PIPE_S) {
    machine().set_from_scalar(key, where);
  } else {
    issue(OpKind::kSet, "asc_sync_notify", source, key, 0, where);
  }
}

void flag_wait(int source, int target, int event, Where where) {
  int key = event_key("asc_sync_wait", source, target, event, where);
  if (target == PIPE_S) {
    machine().wait_scalar(Blocked::kFlag, key, where);
  } else {
    issue(OpKind::kWait, "asc_sync_wait", target, key, 0, where);
  }
}

// Between the cores of a block: the cube core numbers the flags of vector core 0 from 0 and those of vector core 1
// from 16; a vector core numbers its own from 0.
void intra_arrive(int pipe, int id, Where where) {
  check_queued_pipe("asc_sync_intra_arrive", pipe, where);
  int self = machine().core().index, limit = self == 0 ? 2 * kIntraFlags : kIntraFlags;
  if (id < 0 || id >= limit) refuse("asc_sync_intra_arrive", where, "flag " + std::to_string(id) + " does not exist");
  int receiver = self == 0 ? 1 + id / kIntraFlags : 0;
  int key = self == 0 ? id % kIntraFlags : id + (self - 1) * kIntraFlags;
  issue(OpKind::kArrive, "asc_sync_intra_arrive", pipe, key, receiver, where);
}

void intra_wait(int pipe, int id, Where where) {
  check_queued_pipe("asc_sync_intra_wait", pipe, where);
  int limit = machine().core().index == 0 ? 2 * kIntraFlags : kIntraFlags;
  if (id < 0 || id >= limit) refuse("asc_sync_intra_wait", where, "flag " + std::to_string(id) + " does not exist");
  issue(OpKind::kAwait, "asc_sync_intra_wait", pipe, id, 0, where);
}

// Locks are granted in program order: the n-th lock of a buffer waits for the n-1 unlocks before it.
void buffer_lock(int pipe, int id, Where where) {
  check_queued_pipe("asc_lock", pipe, where);
  if (id < 0 || id >= kBuffers) refuse("asc_lock", where, "buffer " + std::to_string(id) + " is not 0 to 31");
  int ticket = static_cast<int>(machine().core().buffers[id].tickets++);
  issue(OpKind::kLock, "asc_lock", pipe, id, ticket, where);
}

void buffer_unlock(int pipe, int id, Where where) {
  check_queued_pipe("asc_unlock", pipe, where);
  if (id < 0 || id >= kBuffers) refuse("asc_unlock", where, "buffer " + std::to_string(id) + " is not 0 to 31");
  issue(OpKind::kUnlock, "asc_unlock", pipe, id, 0, where);
}

void pipe_barrier(int pipe, Where where) {
  if (pipe == PIPE_ALL || pipe == PIPE_S) {
    machine().wait_scalar(Blocked::kPipes, 0, where);
    return;
  }
  check_pipe("asc_sync_pipe", pipe, where);
  issue(OpKind::kBarrier, "asc_sync_pipe", pipe, 0, 0, where);
}

// -- Copies
// ------------------------------------------------------------------------------------------------------------

void set_pad(uint64_t value) { machine().core().pad = value; }
void set_nz_parameters(uint32_t c0_stride) { machine().core().c0_stride = c0_stride; }

void gm_to_ub(void* ub, const void* gm, uint32_t rows, uint32_t row_bytes, uint32_t pad_bytes, int64_t gm_stride,
              int64_t ub_stride, Where where) {
  const char* name = "asc_copy_gm2ub_align";
  require_vector_core(name, where);
  int64_t target = aligned_ub(name, ub, where);
  uint64_t pad = machine().core().pad;
  queue(PIPE_MTE2, name, where, [=] {
    Machine& m = machine();
    Space& space = *m.core().ub;
    for (uint32_t row = 0; row < rows; row++) {
      auto* from = m.global(static_cast<const uint8_t*>(gm) + row * gm_stride, row_bytes, false);
      auto* to = m.on_chip(space, target + row * ub_stride, row_bytes + pad_bytes, true);
      std::memcpy(to, from, row_bytes);
      for (uint32_t i = 0; i < pad_bytes; i++) to[row_bytes + i] = static_cast<uint8_t>(pad >> (i % 4 * 8));
    }
  });
}

void ub_to_gm(void* gm, const void* ub, uint32_t rows, uint32_t row_bytes, int64_t gm_stride, int64_t ub_stride,
              Where where) {
  const char* name = "asc_copy_ub2gm_align";
  require_vector_core(name, where);
  int64_t source = aligned_ub(name, ub, where);
  queue(PIPE_MTE3, name, where, [=] {
    Machine& m = machine();
    for (uint32_t row = 0; row < rows; row++) {
      auto* from = m.on_chip(*m.core().ub, source + row * ub_stride, row_bytes, false);
      std::memcpy(m.global(static_cast<uint8_t*>(gm) + row * gm_stride, row_bytes, true), from, row_bytes);
    }
  });
}

// Fractal layout of an [n, d] matrix in L1: groups of C0 = 32 bytes along d, each n rows of 32 bytes, c0_stride rows
// apart. A group that d fills in part is completed with zeros.
void gm_to_l1(void* l1, const void* gm, int element, int64_t gm_stride, uint32_t n, uint32_t d, bool transposed,
              Where where) {
  const char* name = transposed ? "asc_copy_gm2l1_dn2nz" : "asc_copy_gm2l1_nd2nz";
  require_cube_core(name, where);
  int64_t target = offset_of(l1), c0_stride = machine().core().c0_stride;
  if (target % 32 != 0) refuse(name, where, "L1 address " + std::to_string(target) + " is not a multiple of 32");
  queue(PIPE_MTE2, name, where, [=] {
    Machine& m = machine();
    const auto* source = static_cast<const uint8_t*>(gm);
    uint32_t c0 = 32 / element;
    for (uint32_t line = 0; line < (transposed ? d : n); line++) {
      m.global(source + line * gm_stride, std::size_t(transposed ? n : d) * element, false);
    }
    for (uint32_t group = 0; group * c0 < d; group++) {
      auto* to = m.on_chip(m.l1, target + group * c0_stride * 32, std::size_t(n) * 32, true);
      uint32_t width = std::min(c0, d - group * c0);
      for (uint32_t row = 0; row < n; row++, to += 32) {
        if (!transposed) {
          std::memcpy(to, source + row * gm_stride + std::size_t(group) * 32, width * element);
        } else {
          for (uint32_t i = 0; i < width; i++) {
            std::memcpy(to + i * element, source + (group * c0 + i) * gm_stride + row * element, element);
          }
        }
        std::memset(to + width * element, 0, 32 - width * element);
      }
    }
  });
}

void fill_l1(void* l1, int element, uint32_t value, uint64_t repeat, uint64_t blocks, uint64_t gap, Where where) {
  const char* name = "asc_fill_l1";
  require_cube_core(name, where);
  int64_t target = offset_of(l1);
  queue(PIPE_MTE2, name, where, [=] {
    Machine& m = machine();
    for (uint64_t i = 0; i < repeat; i++) {
      auto* to = m.on_chip(m.l1, target + i * (blocks + gap) * 32, blocks * 32, true);
      for (uint64_t at = 0; at < blocks * 32; at += element) std::memcpy(to + at, &value, element);
    }
  });
}

void ub_to_l1(void* l1, const void* ub, uint32_t bursts, uint32_t length, uint32_t ub_gap, uint32_t l1_gap,
              Where where) {
  const char* name = "asc_copy_ub2l1";
  require_vector_core(name, where);
  int64_t target = offset_of(l1), source = aligned_ub(name, ub, where);
  queue(PIPE_MTE3, name, where, [=] {
    Machine& m = machine();
    for (uint32_t i = 0; i < bursts; i++) {
      auto* from = m.on_chip(*m.core().ub, source + int64_t(i) * (length + ub_gap) * 32, length * 32, false);
      std::memcpy(m.on_chip(m.l1, target + int64_t(i) * (length + l1_gap) * 32, length * 32, true), from, length * 32);
    }
  });
}

// Fractals of 16 rows of 32 bytes, column group by column group, in L1 and in L0A / L0B.
void l1_to_l0(bool is_b, void* l0, const void* l1, uint32_t m_start, uint32_t k_start, uint32_t m_step, uint32_t k_step,
              uint32_t l1_stride, uint32_t l0_stride, Where where) {
  const char* name = is_b ? "asc_copy_l12l0b" : "asc_copy_l12l0a";
  require_cube_core(name, where);
  int64_t target = offset_of(l0), source = offset_of(l1);
  constexpr int64_t kFractal = 512;
  queue(PIPE_MTE1, name, where, [=] {
    Machine& m = machine();
    for (uint32_t k = 0; k < k_step; k++) {
      auto* from =
          m.on_chip(m.l1, source + (int64_t(k_start + k) * l1_stride + m_start) * kFractal, m_step * kFractal, false);
      auto* to = m.on_chip(is_b ? m.l0b : m.l0a, target + int64_t(k) * l0_stride * kFractal, m_step * kFractal, true);
      std::memcpy(to, from, m_step * kFractal);
    }
  });
}

namespace {

float float_of(uint16_t bf16) {
  uint32_t bits = uint32_t(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
int32_t value_of(int8_t x) { return x; }
float value_of(uint16_t x) { return float_of(x); }

// L0A [k / C, m / 16, 16, C] and L0B [k / C, n / 16, 16, C] give L0C [n / 16, m / 16, 16, 16]; C elements are 32 bytes.
// Products are added in ascending k.
template <class In, class Sum>
void mmad(void* l0c, const void* l0a, const void* l0b, uint32_t m, uint32_t k, uint32_t n, bool clear, Where where) {
  const char* name = "asc_mmad";
  constexpr int kC = 32 / sizeof(In);
  require_cube_core(name, where);
  if (m == 0 || n == 0 || k == 0 || k % kC != 0)
    refuse(name, where, "extents must be positive, k a multiple of " + std::to_string(kC));
  int64_t c_at = offset_of(l0c), a_at = offset_of(l0a), b_at = offset_of(l0b);
  queue(PIPE_M, name, where, [=] {
    Machine& machine_ = machine();
    uint32_t m16 = (m + 15) / 16, n16 = (n + 15) / 16, groups = k / kC;
    auto* a = reinterpret_cast<In*>(machine_.on_chip(machine_.l0a, a_at, std::size_t(m16) * groups * 512, false));
    auto* b = reinterpret_cast<In*>(machine_.on_chip(machine_.l0b, b_at, std::size_t(n16) * groups * 512, false));
    std::size_t c_bytes = std::size_t(m16) * n16 * 1024;
    if (!clear) machine_.on_chip(machine_.l0c, c_at, c_bytes, false);
    auto* c = reinterpret_cast<Sum*>(machine_.on_chip(machine_.l0c, c_at, c_bytes, true));
    if (clear) std::memset(c, 0, c_bytes);
    for (uint32_t group = 0; group < groups; group++) {
      for (uint32_t tile_n = 0; tile_n < n16; tile_n++) {
        // B transposed, so that the innermost loop runs over n.
        Sum columns[kC][16];
        const In* b_fractal = b + (std::size_t(group) * n16 + tile_n) * 16 * kC;
        for (int j = 0; j < 16; j++) {
          for (int q = 0; q < kC; q++) columns[q][j] = value_of(b_fractal[j * kC + q]);
        }
        for (uint32_t tile_m = 0; tile_m < m16; tile_m++) {
          const In* a_fractal = a + (std::size_t(group) * m16 + tile_m) * 16 * kC;
          Sum* c_fractal = c + (std::size_t(tile_n) * m16 + tile_m) * 256;
          for (int i = 0; i < 16; i++) {
            Sum sums[16];
            std::memcpy(sums, c_fractal + i * 16, sizeof(sums));
            for (int q = 0; q < kC; q++) {
              Sum factor = value_of(a_fractal[i * kC + q]);
              for (int j = 0; j < 16; j++) sums[j] += factor * columns[q][j];
            }
            std::memcpy(c_fractal + i * 16, sums, sizeof(sums));
          }
        }
      }
    }
  });
}

}  // namespace

void mmad_int8(void* l0c, const void* l0a, const void* l0b, uint32_t m, uint32_t k, uint32_t n, bool clear,
               Where where) {
  mmad<int8_t, int32_t>(l0c, l0a, l0b, m, k, n, clear, where);
}

void mmad_bf16(void* l0c, const void* l0a, const void* l0b, uint32_t m, uint32_t k, uint32_t n, bool clear,
               Where where) {
  if (!machine().options().rounded) refuse("asc_mmad", where, "sums of bfloat16 products round: native mode only");
  mmad<uint16_t, float>(l0c, l0a, l0b, m, k, n, clear, where);
}

namespace {

/// Element [row, column] of L0C sums stored [n / 16, stride rows, 16].
inline std::size_t l0c_index(uint32_t row, uint32_t column, uint32_t stride) {
  return (std::size_t(column / 16) * stride + row) * 16 + column % 16;
}

std::size_t l0c_bytes(uint32_t n, uint32_t m, uint32_t stride) {
  return (l0c_index(m - 1, (n - 1) / 16 * 16, stride) + 16) * 4;
}

}  // namespace

void l0c_to_ub(void* ub, const void* l0c, uint32_t n, uint32_t m, uint32_t ub_stride, uint32_t l0c_stride,
               int sub_block, int dual, Where where) {
  const char* name = "asc_copy_l0c2ub";
  require_cube_core(name, where);
  int64_t target = aligned_ub(name, ub, where), source = offset_of(l0c);
  if (dual < 0 || dual > 2) refuse(name, where, "dual mode is not 0, 1 or 2");
  if ((dual == 1 && m % 2 != 0) || (dual == 2 && n % 32 != 0))
    refuse(name, where, "the split does not give equal halves");
  if (dual == 0 && (sub_block < 0 || sub_block > 1)) refuse(name, where, "no such vector core");
  queue(PIPE_FIX, name, where, [=] {
    Machine& machine_ = machine();
    auto* sums =
        reinterpret_cast<int32_t*>(machine_.on_chip(machine_.l0c, source, l0c_bytes(n, m, l0c_stride), false, false));
    uint32_t rows = dual == 1 ? m / 2 : m, columns = dual == 2 ? n / 2 : n;
    for (int part = 0; part < (dual ? 2 : 1); part++) {
      Space& space = machine_.ub_of(dual ? part : sub_block);
      uint32_t first_row = dual == 1 ? part * rows : 0, first_column = dual == 2 ? part * columns : 0;
      for (uint32_t row = 0; row < rows; row++) {
        auto* to = machine_.on_chip(space, target + int64_t(row) * ub_stride * 4, columns * 4, true);
        for (uint32_t column = 0; column < columns; column++) {
          std::memcpy(to + column * 4, sums + l0c_index(first_row + row, first_column + column, l0c_stride), 4);
        }
      }
    }
  });
}

void l0c_to_gm(void* gm, const void* l0c, uint32_t n, uint32_t m, uint32_t gm_stride, uint32_t l0c_stride,
               Where where) {
  const char* name = "asc_copy_l0c2gm";
  require_cube_core(name, where);
  int64_t source = offset_of(l0c);
  queue(PIPE_FIX, name, where, [=] {
    Machine& machine_ = machine();
    auto* sums = reinterpret_cast<int32_t*>(machine_.on_chip(machine_.l0c, source, l0c_bytes(n, m, l0c_stride), false));
    for (uint32_t row = 0; row < m; row++) {
      auto* to = machine_.global(static_cast<uint8_t*>(gm) + std::size_t(row) * gm_stride * 4, n * 4, true);
      for (uint32_t column = 0; column < n; column++) {
        std::memcpy(to + column * 4, sums + l0c_index(row, column, l0c_stride), 4);
      }
    }
  });
}

uint64_t scalar_load(const void* gm, int bytes, Where) {
  machine().scalar_access(gm, bytes, false);
  uint64_t value = 0;
  std::memcpy(&value, gm, bytes);
  return value;
}

void scalar_store(void* gm, uint64_t value, int bytes, Where) {
  machine().scalar_access(gm, bytes, true);
  std::memcpy(gm, &value, bytes);
}

// -- Vector functions
// --------------------------------------------------------------------------------------------------

void issue_vector_function(VectorFunction function, Where where) {
  require_vector_core("asc_vf_call", where);
  int threads = function.x * function.y * function.z;
  if (threads < 1 || threads > 2048) refuse("asc_vf_call", where, std::to_string(threads) + " threads, not 1 to 2048");
  std::shared_ptr<void> owner(function.arguments, function.drop);
  queue(PIPE_V, "asc_vf_call", where, [function, owner] { machine().run_vector_function(function); });
}

void thread_barrier() { machine().thread_barrier(); }
uint32_t exchange_lanes(Lanes kind, uint32_t value, int operand) { return machine().exchange(kind, value, operand); }
uint64_t vote(bool predicate) { return machine().vote(predicate); }

}  // namespace kf
