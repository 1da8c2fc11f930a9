// From statements to instructions. Each family of instructions has a decoder in the file that executes it.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace kernelforge::vcuda {

// Marks an operand that is a value to be given a slot of the register file.
constexpr uint32_t kVirtual = 0x40000000u;
inline bool is_virtual(uint32_t op) { return op != kNone && !(op >> 31) && (op & kVirtual); }

enum class Ty : uint8_t {
  kNone,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kB8,
  kB16,
  kB32,
  kB64,
  kF16,
  kF16x2,
  kBF16,
  kBF16x2,
  kF32,
  kF64,
  kPred,
  kE4M3x2,
  kE5M2x2,
  kB128
};

Ty parse_type(const std::string& modifier);  // kNone when it is not a type
uint32_t bits_of(Ty t);
bool is_signed(Ty t);
bool is_float(Ty t);

class Decoder {
 public:
  Decoder(Program& program, Entry& entry) : program(program), entry(entry) {}
  void run();

  // --- for the families
  Program& program;
  Entry& entry;
  const Statement* s = nullptr;
  std::vector<std::string> mods;  // opcode split at dots; mods[0] is the base
  Instr in;

  bool has(const char* modifier) const;
  Ty last_type() const;           // the last modifier that is a type
  std::vector<Ty> types() const;  // all of them, in order
  size_t arguments() const { return s->arguments.size(); }
  const std::string& argument(size_t k) const;
  [[noreturn]] void fail(const std::string& why) const;

  uint32_t source(const std::string& text, Ty t);       // slot id of an operand read as t
  uint32_t destination(const std::string& text, Ty t);  // slot id of an operand written as t
  uint32_t source(size_t k, Ty t) { return source(argument(k), t); }
  uint32_t destination(size_t k, Ty t) { return destination(argument(k), t); }
  uint32_t predicate_source(const std::string& text);  // top bit set: negated
  uint32_t predicate_destination(const std::string& text);
  bool is_predicate(const std::string& text) const;
  bool is_register(const std::string& text) const;
  RegClass register_class(const std::string& text) const;
  std::vector<std::string> braces(const std::string& text) const;  // "{a, b}" -> a, b; "a" -> a
  // "[reg+imm]": sets in.op[k], in.imm, in.address64.
  void address(const std::string& text, int k);
  void set_list(const std::vector<uint32_t>& slots);
  int64_t immediate(const std::string& text) const;
  void emit();  // append `in`
  void emit_as(Handler fn) {
    in.fn = fn;
    emit();
  }

 private:
  uint32_t constant(uint64_t bits, bool wide);
  uint32_t special(Special which, bool wide, uint64_t add = 0);
  uint32_t temporary(bool wide);
  bool symbol(const std::string& name, uint64_t& value) const;
  void allocate();  // registers to slots by lifetime

  struct Touch {
    std::vector<uint32_t> uses, defs;
  };
  std::vector<uint32_t> uses_, defs_;
  std::vector<Touch> touches_;
  struct Virtual {
    bool wide;
    bool pinned;  // constant, special or wgmma operand
    bool wgmma = false;
  };
  std::vector<Virtual> virtuals_;
  std::vector<int64_t> virtual_of_register_;
  std::vector<int32_t> predicate_of_register_;
  std::map<std::pair<uint64_t, bool>, uint32_t> constants_;
  std::map<std::pair<int, uint64_t>, uint32_t> specials_;
  struct After {
    uint32_t from, to;
    bool is_signed;
  };
  std::vector<After> after_;
  std::vector<uint32_t> statement_start_;
  std::vector<std::pair<uint32_t, uint32_t>> branches_;  // instruction, statement
  friend bool decode_control(Decoder& d);
  friend bool decode_wgmma(Decoder& d);

  uint32_t virtual_register(int64_t reg);
};

// Each returns false when the opcode is not of its family.
bool decode_integer(Decoder& d);
bool decode_float(Decoder& d);
bool decode_half(Decoder& d);
bool decode_compare(Decoder& d);
bool decode_convert(Decoder& d);
bool decode_move(Decoder& d);
bool decode_bits(Decoder& d);
bool decode_memory(Decoder& d);
bool decode_atomic(Decoder& d);
bool decode_warp(Decoder& d);
bool decode_sync(Decoder& d);
bool decode_async(Decoder& d);
bool decode_bulk(Decoder& d);  // cp.async.bulk
bool decode_matrix(Decoder& d);
bool decode_wgmma(Decoder& d);
bool decode_control(Decoder& d);

// Hidden helpers: 64-bit to 32-bit and back.
void run_truncate(Warp& w, const Instr& in, uint32_t mask);
void run_extend_signed(Warp& w, const Instr& in, uint32_t mask);
void run_extend_unsigned(Warp& w, const Instr& in, uint32_t mask);

}  // namespace kernelforge::vcuda
