// A PTX module decoded once into the compact form that warps execute.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ptx.h"

namespace kernelforge::vcuda {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kFullMask = 0xffffffffu;
constexpr uint32_t kNone = 0xffffffffu;

struct Warp;
struct Instr;
// Executes one instruction for the lanes in `mask` (never 0).
using Handler = void (*)(Warp&, const Instr&, uint32_t mask);

enum InstrFlag : uint16_t {
  kConverged = 1,   // .aligned: all live lanes of the warp execute it together
  kMember = 2,      // waits for the lanes of its member mask (operand `member`)
  kControl = 4,     // sets the pc itself
  kEffect = 8,      // others can see that it was executed: progress for the deadlock detector
  kWgmmaRegs = 16,  // names a register that some wgmma uses
  kWgmma = 32,      // wgmma.mma_async itself
};

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam };

struct Instr {
  Handler fn = nullptr;
  // Slots of the register file (lane vectors), indices of predicates, or whatever the handler agreed on with its
  // decoder.
  uint32_t op[8] = {kNone, kNone, kNone, kNone, kNone, kNone, kNone, kNone};
  int64_t imm = 0;
  uint32_t list = 0;  // start in Program::lists, for operands in braces
  uint16_t list_size = 0;
  uint16_t flags = 0;
  int32_t guard = -1;  // predicate index
  bool guard_negated = false;
  bool address64 = true;
  Space space = Space::kGeneric;
  uint8_t bytes = 0;  // of one element of a memory access
  uint8_t count = 0;  // elements of a vector access, matrices of ldmatrix
  uint8_t mode = 0;   // small per-handler variants
  uint32_t member = kNone;
  uint32_t target = 0;  // branch
  uint32_t statement = 0;
};

struct Constant {
  uint32_t slot;
  bool wide;
  uint64_t bits;
};

enum class Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kWarpid,
  kNwarpid,
  kLanemaskEq,
  kLanemaskLe,
  kLanemaskLt,
  kLanemaskGe,
  kLanemaskGt,
  kDynamicSmem,
  kTotalSmem,
  kGlobals
};

struct SpecialSlot {
  uint32_t slot;
  bool wide;
  Special which;
  uint64_t add;  // kGlobals: offset of the variable
};

// What a matrix instruction multiplies.
enum class Elem : uint8_t { kS8, kU8, kF16, kBF16, kE4M3, kE5M2 };

struct Entry {
  EntryText text;
  std::vector<Instr> code;
  std::vector<uint32_t> lists;
  std::vector<Constant> constants;
  std::vector<SpecialSlot> specials;
  std::vector<uint8_t> wgmma_slot;             // per slot: holds an operand of some wgmma
  std::vector<std::vector<uint32_t>> touched;  // per instruction: slots it reads or writes that some wgmma uses
  uint32_t slots = 0;
  uint32_t predicates = 0;
  int32_t true_predicate = -1;  // of immediate predicates
  uint32_t shared_bytes = 0;    // static, with the reserved first kilobyte
  bool uses_wgmma = false;
};

struct Program {
  Module module;
  int sm = 0;            // 80, 90, ...
  bool rounded = false;  // sums of matrix instructions need not be exact (native mode)
  std::vector<Entry> entries;
  std::string where(const Entry& entry, uint32_t pc) const;  // "`mov.u32 ..` (PTX line 12, k.cu:34)"
};

std::shared_ptr<Program> load_program(const std::string& ptx, bool rounded = false);

// Shared addresses start here, as the first kilobyte belongs to the system on sm_90.
constexpr uint32_t kSharedBase = 1024;
// Windows of the generic address space, outside every host address.
constexpr uint64_t kSharedWindow = 0x0100000000000000ull;
constexpr uint64_t kLocalWindow = 0x0200000000000000ull;
constexpr uint64_t kParamWindow = 0x0300000000000000ull;
constexpr uint64_t kWindowMask = 0xff00000000000000ull;

}  // namespace kernelforge::vcuda
