// Loads and stores of every space, with bounds and alignment.
#include <cstdio>

#include "checker.h"
#include "decode.h"
#include "machine.h"

namespace kernelforge::vcuda {

std::string hex(uint64_t v) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

namespace {

const Buffer* find_buffer(const Launch& launch, uint64_t address) {
  size_t lo = 0, hi = launch.buffers.size();
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (launch.buffers[mid].address <= address)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo == 0 ? nullptr : &launch.buffers[lo - 1];
}

[[noreturn]] void outside(const Launch& launch, uint64_t address, uint64_t bytes) {
  std::string near;
  if (const Buffer* b = find_buffer(launch, address)) {
    uint64_t offset = address - b->address;
    near = "; the buffer of " + std::to_string(b->bytes) + " bytes below it begins " + std::to_string(offset) +
           " bytes before";
  }
  throw KernelFault("global access of " + std::to_string(bytes) + " bytes at " + hex(address) +
                    " is outside every buffer" + near);
}

}  // namespace

uint8_t* global_pointer(const Launch& launch, uint64_t address, uint64_t bytes, bool write) {
  const Buffer* b = find_buffer(launch, address);
  if (!b || address + bytes > b->address + b->bytes || address + bytes < address) outside(launch, address, bytes);
  if (write && !b->writable)
    throw KernelFault("store of " + std::to_string(bytes) + " bytes at offset " + std::to_string(address - b->address) +
                      " of a read-only buffer");
  return reinterpret_cast<uint8_t*>(address);
}

void mark_written(const Cta& cta, uint64_t address, uint64_t bytes) {
  const Launch& launch = *cta.launch;
  const Buffer* b = launch.check ? find_buffer(launch, address) : nullptr;
  if (!b || !b->writers) return;
  uint32_t self = 1 + cta.index[0] + launch.grid[0] * (cta.index[1] + launch.grid[1] * cta.index[2]);
  for (uint64_t k = address - b->address; k < address - b->address + bytes; ++k) {
    uint32_t other = __atomic_load_n(b->writers + k, __ATOMIC_RELAXED);
    if (other == self) continue;
    if (other) {
      other -= 1;
      throw KernelFault("byte " + std::to_string(k) + " of a global buffer of " + std::to_string(b->bytes) +
                        " bytes is also stored by CTA (" + std::to_string(other % launch.grid[0]) + ", " +
                        std::to_string(other / launch.grid[0] % launch.grid[1]) + ", " +
                        std::to_string(other / launch.grid[0] / launch.grid[1]) + "), and nothing orders the two");
    }
    __atomic_store_n(b->writers + k, self, __ATOMIC_RELAXED);
  }
}

uint8_t* shared_pointer(Cta& cta, uint64_t address, uint64_t bytes) {
  if (address < kSharedBase || address + bytes > cta.shared.size())
    throw KernelFault("shared access of " + std::to_string(bytes) + " bytes at " + hex(address) +
                      " is outside the CTA's " + std::to_string(cta.shared.size() - kSharedBase) + " bytes from " +
                      hex(kSharedBase));
  return cta.shared.data() + address;
}

void lane_addresses(const Warp& w, const Instr& in, uint32_t slot, uint64_t out[kLanes]) {
  if (in.address64) {
    const uint64_t* a = w.in<uint64_t>(slot);
    for (uint32_t l = 0; l < kLanes; ++l) out[l] = a[l] + static_cast<uint64_t>(in.imm);
  } else {
    const uint32_t* a = w.in<uint32_t>(slot);
    for (uint32_t l = 0; l < kLanes; ++l) out[l] = a[l] + static_cast<uint32_t>(in.imm);
  }
}

namespace {

enum class Access : uint8_t { kRead, kWrite, kAtomic };

// Host pointers of the lanes in `mask`; checks alignment, bounds and, for shared memory, order.
void resolve(Warp& w, const Instr& in, uint32_t slot, uint32_t mask, uint32_t bytes, Access access,
             uint8_t* out[kLanes]) {
  uint64_t a[kLanes];
  lane_addresses(w, in, slot, a);
  Cta& cta = *w.cta;
  const Launch& launch = *cta.launch;
  const Buffer* hint = nullptr;
  bool write = access != Access::kRead;
  uint32_t shared_lanes = 0;
  uint32_t shared_address[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) {
      out[l] = nullptr;
      continue;
    }
    uint64_t address = a[l];
    if (address & (bytes - 1))
      throw KernelFault("access of " + std::to_string(bytes) + " bytes at " + hex(address) + " is misaligned (lane " +
                        std::to_string(l) + ")");
    Space space = in.space;
    if (space == Space::kGeneric) {
      uint64_t window = address & kWindowMask;
      space = window == kSharedWindow  ? Space::kShared
              : window == kLocalWindow ? Space::kLocal
              : window == kParamWindow ? Space::kParam
                                       : Space::kGlobal;
      if (space != Space::kGlobal) address &= ~kWindowMask;
    }
    switch (space) {
      case Space::kShared:
        out[l] = shared_pointer(cta, address, bytes);
        shared_lanes |= 1u << l;
        shared_address[l] = static_cast<uint32_t>(address);
        break;
      case Space::kLocal:
        if (address + bytes > cta.entry->text.local_bytes)
          throw KernelFault("local access at " + hex(address) + " is outside the frame");
        out[l] = w.local.data() + l * cta.entry->text.local_bytes + address;
        break;
      case Space::kParam:
        if (write) throw KernelFault("store to the parameters");
        if (address + bytes > launch.params.size())
          throw KernelFault("parameter access at " + hex(address) + " is outside the parameters");
        out[l] = const_cast<uint8_t*>(launch.params.data()) + address;
        break;
      default:
        if (!hint || address < hint->address || address + bytes > hint->address + hint->bytes ||
            (write && !hint->writable)) {
          global_pointer(launch, address, bytes, write);
          hint = find_buffer(launch, address);
        }
        out[l] = reinterpret_cast<uint8_t*>(address);
        if (launch.check && access == Access::kWrite) mark_written(cta, address, bytes);
    }
  }
  if (!shared_lanes || !cta.checker) return;
  for (uint32_t l = 0; l < kLanes;) {  // neighbouring lanes as one range
    if (!(shared_lanes >> l & 1)) {
      ++l;
      continue;
    }
    uint32_t begin = shared_address[l], end = begin + bytes;
    for (++l; l < kLanes && (shared_lanes >> l & 1) && shared_address[l] == end; ++l) end += bytes;
    switch (access) {
      case Access::kRead:
        cta.checker->read(w, begin, end - begin);
        break;
      case Access::kWrite:
        cta.checker->write(w, begin, end - begin);
        break;
      case Access::kAtomic:
        cta.checker->atomic(w, begin, end - begin);
        break;
    }
  }
}

// M: bytes in memory as an integer type; R: lane representation.
template <class M, class R>
void run_load(Warp& w, const Instr& in, uint32_t mask) {
  uint8_t* p[kLanes];
  resolve(w, in, in.op[1], mask, static_cast<uint32_t>(sizeof(M)) * in.count, Access::kRead, p);
  for (uint32_t k = 0; k < in.count; ++k) {
    R* d = w.out<R>(w.lists[in.list + k]);
    for (uint32_t l = 0; l < kLanes; ++l) {
      if (!(mask >> l & 1)) continue;
      M value;
      std::memcpy(&value, p[l] + k * sizeof(M), sizeof(M));
      if constexpr (std::is_signed_v<M> && sizeof(M) < sizeof(R))
        d[l] = static_cast<R>(static_cast<std::make_signed_t<R>>(value));
      else
        d[l] = static_cast<R>(value);
    }
  }
}

template <class M, class R>
void run_store(Warp& w, const Instr& in, uint32_t mask) {
  uint8_t* p[kLanes];
  resolve(w, in, in.op[1], mask, static_cast<uint32_t>(sizeof(M)) * in.count, Access::kWrite, p);
  for (uint32_t k = 0; k < in.count; ++k) {
    const R* s = w.in<R>(w.lists[in.list + k]);
    for (uint32_t l = 0; l < kLanes; ++l) {
      if (!(mask >> l & 1)) continue;
      M value = static_cast<M>(s[l]);
      std::memcpy(p[l] + k * sizeof(M), &value, sizeof(M));
    }
  }
}

Handler memory_handler(Ty t, bool load) {
#define VCUDA_PICK(M, R) load ? static_cast<Handler>(run_load<M, R>) : static_cast<Handler>(run_store<M, R>)
  switch (t) {
    case Ty::kU8:
    case Ty::kB8:
      return VCUDA_PICK(uint8_t, uint32_t);
    case Ty::kS8:
      return VCUDA_PICK(int8_t, uint32_t);
    case Ty::kU16:
    case Ty::kB16:
    case Ty::kF16:
    case Ty::kBF16:
      return VCUDA_PICK(uint16_t, uint32_t);
    case Ty::kS16:
      return VCUDA_PICK(int16_t, uint32_t);
    case Ty::kU64:
    case Ty::kS64:
    case Ty::kB64:
    case Ty::kF64:
      return VCUDA_PICK(uint64_t, uint64_t);
    case Ty::kNone:
    case Ty::kPred:
    case Ty::kB128:
      return nullptr;
    default:
      return VCUDA_PICK(uint32_t, uint32_t);
  }
#undef VCUDA_PICK
}

// ---- atomics --------------------------------------------------------------------------------------------------------
enum AtomicOp : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExch, kInc, kDec, kCas };

template <class T>
T atomic_apply(uint8_t op, T* p, T a, T b) {
  T old = __atomic_load_n(p, __ATOMIC_SEQ_CST), next;
  do {
    using U = std::make_unsigned_t<T>;
    switch (op) {
      case kAdd:
        next = static_cast<T>(static_cast<U>(old) + static_cast<U>(a));
        break;
      case kMin:
        next = a < old ? a : old;
        break;
      case kMax:
        next = a > old ? a : old;
        break;
      case kAnd:
        next = old & a;
        break;
      case kOr:
        next = old | a;
        break;
      case kXor:
        next = old ^ a;
        break;
      case kExch:
        next = a;
        break;
      case kInc:
        next = static_cast<U>(old) >= static_cast<U>(a) ? 0 : old + 1;
        break;
      case kDec:
        next = old == 0 || static_cast<U>(old) > static_cast<U>(a) ? a : old - 1;
        break;
      default:
        next = old == a ? b : old;
        break;
    }
  } while (!__atomic_compare_exchange_n(p, &old, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}

template <class T>
void run_atomic(Warp& w, const Instr& in, uint32_t mask) {
  using S = typename Rep<T>::S;
  uint8_t* p[kLanes];
  resolve(w, in, in.op[1], mask, sizeof(T), Access::kAtomic, p);
  const S* a = w.in<S>(in.op[2]);
  const S* b = in.op[3] == kNone ? a : w.in<S>(in.op[3]);
  S out[kLanes] = {};
  for (uint32_t l = 0; l < kLanes; ++l)
    if (mask >> l & 1)
      out[l] = static_cast<S>(
          atomic_apply<T>(in.mode, reinterpret_cast<T*>(p[l]), static_cast<T>(a[l]), static_cast<T>(b[l])));
  if (in.op[0] != kNone) commit(w, in.op[0], out, mask);
}

Space memory_space(const Decoder& d) {
  for (size_t k = 1; k < d.mods.size(); ++k) {
    const std::string& m = d.mods[k];
    if (m == "shared" || m == "shared::cta" || m == "shared::cluster") return Space::kShared;
    if (m == "global" || m == "const") return Space::kGlobal;
    if (m == "local") return Space::kLocal;
    if (m == "param" || m == "param::entry") return Space::kParam;
  }
  return Space::kGeneric;
}

}  // namespace

bool decode_memory(Decoder& d) {
  const std::string& op = d.mods[0];
  bool load = op == "ld" || op == "ldu";
  if (!load && op != "st") return false;
  Ty t = d.last_type();
  Handler fn = memory_handler(t, load);
  if (!fn) d.fail("type not supported");
  d.in.space = memory_space(d);
  d.in.count = d.has("v8") ? 8 : d.has("v4") ? 4 : d.has("v2") ? 2 : 1;
  if (!load) d.in.flags |= kEffect;
  d.address(d.argument(load ? 1 : 0), 1);
  std::vector<std::string> names = d.braces(d.argument(load ? 0 : 1));
  if (names.size() != d.in.count) d.fail("the vector has another number of elements");
  std::vector<uint32_t> slots;
  for (const std::string& n : names) slots.push_back(load ? d.destination(n, t) : d.source(n, t));
  d.set_list(slots);
  d.emit_as(fn);
  return true;
}

bool decode_atomic(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op != "atom" && op != "red") return false;
  bool returns = op == "atom";
  Ty t = d.last_type();
  if (is_float(t) || t == Ty::kF16x2 || t == Ty::kBF16x2)
    d.fail("float atomics have no defined order; exact mode has none");
  const char* names[] = {"add", "min", "max", "and", "or", "xor", "exch", "inc", "dec", "cas"};
  bool known = false;
  for (uint8_t k = 0; k < 10; ++k)
    if (d.has(names[k])) d.in.mode = k, known = true;
  if (!known) d.fail("atomic operation not supported");
  Handler fn = nullptr;
  switch (t) {
    case Ty::kS32:
      fn = run_atomic<int32_t>;
      break;
    case Ty::kU32:
    case Ty::kB32:
      fn = run_atomic<uint32_t>;
      break;
    case Ty::kS64:
      fn = run_atomic<int64_t>;
      break;
    case Ty::kU64:
    case Ty::kB64:
      fn = run_atomic<uint64_t>;
      break;
    case Ty::kB16:
      fn = run_atomic<uint16_t>;
      break;
    default:
      d.fail("type not supported");
  }
  d.in.space = memory_space(d);
  d.in.flags |= kEffect;
  size_t k = returns ? 1 : 0;
  d.address(d.argument(k), 1);
  d.in.op[2] = d.source(k + 1, t);
  if (d.in.mode == kCas) d.in.op[3] = d.source(k + 2, t);
  if (returns) d.in.op[0] = d.destination(size_t{0}, t);
  d.emit_as(fn);
  return true;
}

}  // namespace kernelforge::vcuda
