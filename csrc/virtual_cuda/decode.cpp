#include "decode.h"

#include <algorithm>
#include <cstring>

#include "machine.h"

namespace kernelforge::vcuda {
namespace {

const std::map<std::string, Ty>& type_names() {
  static const std::map<std::string, Ty> names = {
      {"u8", Ty::kU8},         {"u16", Ty::kU16},  {"u32", Ty::kU32}, {"u64", Ty::kU64},     {"s8", Ty::kS8},
      {"s16", Ty::kS16},       {"s32", Ty::kS32},  {"s64", Ty::kS64}, {"b8", Ty::kB8},       {"b16", Ty::kB16},
      {"b32", Ty::kB32},       {"b64", Ty::kB64},  {"f16", Ty::kF16}, {"f16x2", Ty::kF16x2}, {"bf16", Ty::kBF16},
      {"bf16x2", Ty::kBF16x2}, {"f32", Ty::kF32},  {"f64", Ty::kF64}, {"pred", Ty::kPred},   {"e4m3x2", Ty::kE4M3x2},
      {"e5m2x2", Ty::kE5M2x2}, {"b128", Ty::kB128}};
  return names;
}

const std::map<std::string, Special>& special_names() {
  static const std::map<std::string, Special> names = {{"%tid.x", Special::kTidX},
                                                       {"%tid.y", Special::kTidY},
                                                       {"%tid.z", Special::kTidZ},
                                                       {"%ntid.x", Special::kNtidX},
                                                       {"%ntid.y", Special::kNtidY},
                                                       {"%ntid.z", Special::kNtidZ},
                                                       {"%ctaid.x", Special::kCtaidX},
                                                       {"%ctaid.y", Special::kCtaidY},
                                                       {"%ctaid.z", Special::kCtaidZ},
                                                       {"%nctaid.x", Special::kNctaidX},
                                                       {"%nctaid.y", Special::kNctaidY},
                                                       {"%nctaid.z", Special::kNctaidZ},
                                                       {"%laneid", Special::kLaneid},
                                                       {"%warpid", Special::kWarpid},
                                                       {"%nwarpid", Special::kNwarpid},
                                                       {"%lanemask_eq", Special::kLanemaskEq},
                                                       {"%lanemask_le", Special::kLanemaskLe},
                                                       {"%lanemask_lt", Special::kLanemaskLt},
                                                       {"%lanemask_ge", Special::kLanemaskGe},
                                                       {"%lanemask_gt", Special::kLanemaskGt},
                                                       {"%dynamic_smem_size", Special::kDynamicSmem},
                                                       {"%total_smem_size", Special::kTotalSmem}};
  return names;
}

}  // namespace

Ty parse_type(const std::string& m) {
  auto it = type_names().find(m);
  return it == type_names().end() ? Ty::kNone : it->second;
}

uint32_t bits_of(Ty t) {
  switch (t) {
    case Ty::kU8:
    case Ty::kS8:
    case Ty::kB8:
      return 8;
    case Ty::kU16:
    case Ty::kS16:
    case Ty::kB16:
    case Ty::kF16:
    case Ty::kBF16:
    case Ty::kE4M3x2:
    case Ty::kE5M2x2:
      return 16;
    case Ty::kU64:
    case Ty::kS64:
    case Ty::kB64:
    case Ty::kF64:
      return 64;
    case Ty::kB128:
      return 128;
    default:
      return 32;
  }
}

bool is_signed(Ty t) { return t == Ty::kS8 || t == Ty::kS16 || t == Ty::kS32 || t == Ty::kS64; }
bool is_float(Ty t) { return t == Ty::kF16 || t == Ty::kBF16 || t == Ty::kF32 || t == Ty::kF64; }

void Decoder::fail(const std::string& why) const {
  std::string at = "PTX line " + std::to_string(s->line);
  if (s->source_file) {
    auto f = program.module.files.find(s->source_file);
    at += ", " +
          (f == program.module.files.end() ? "file " + std::to_string(s->source_file)
                                           : f->second.substr(f->second.rfind('/') + 1)) +
          ":" + std::to_string(s->source_line);
  }
  throw PtxError("virtual CUDA does not know this instruction: `" + s->text + "` (" + at + "): " + why);
}

bool Decoder::has(const char* modifier) const {
  return std::find(mods.begin() + 1, mods.end(), modifier) != mods.end();
}

std::vector<Ty> Decoder::types() const {
  std::vector<Ty> out;
  for (size_t k = 1; k < mods.size(); ++k)
    if (Ty t = parse_type(mods[k]); t != Ty::kNone) out.push_back(t);
  return out;
}

Ty Decoder::last_type() const {
  std::vector<Ty> t = types();
  if (t.empty()) fail("no type");
  return t.back();
}

const std::string& Decoder::argument(size_t k) const {
  if (k >= s->arguments.size()) fail("operand " + std::to_string(k) + " is missing");
  return s->arguments[k];
}

uint32_t Decoder::temporary(bool wide) {
  virtuals_.push_back({wide, false});
  return kVirtual | static_cast<uint32_t>(virtuals_.size() - 1);
}

uint32_t Decoder::constant(uint64_t bits, bool wide) {
  auto [it, fresh] = constants_.try_emplace({bits, wide}, 0);
  if (fresh) {
    virtuals_.push_back({wide, true});
    it->second = kVirtual | static_cast<uint32_t>(virtuals_.size() - 1);
    entry.constants.push_back({it->second, wide, bits});
  }
  return it->second;
}

uint32_t Decoder::special(Special which, bool wide, uint64_t add) {
  auto [it, fresh] = specials_.try_emplace({static_cast<int>(which) * 2 + wide, add}, 0);
  if (fresh) {
    virtuals_.push_back({wide, true});
    it->second = kVirtual | static_cast<uint32_t>(virtuals_.size() - 1);
    entry.specials.push_back({it->second, wide, which, add});
  }
  return it->second;
}

uint32_t Decoder::virtual_register(int64_t reg) {
  int64_t& v = virtual_of_register_[static_cast<size_t>(reg)];
  if (v < 0) {
    virtuals_.push_back({entry.text.registers[static_cast<size_t>(reg)] == RegClass::k64, false});
    v = static_cast<int64_t>(virtuals_.size()) - 1;
  }
  return kVirtual | static_cast<uint32_t>(v);
}

bool Decoder::is_register(const std::string& text) const { return entry.text.find_register(s->scope, text) >= 0; }

RegClass Decoder::register_class(const std::string& text) const {
  int64_t r = entry.text.find_register(s->scope, text);
  if (r < 0) fail("'" + text + "' is not a register");
  return entry.text.registers[static_cast<size_t>(r)];
}

bool Decoder::is_predicate(const std::string& text) const {
  std::string name = !text.empty() && text[0] == '!' ? text.substr(1) : text;
  int64_t r = entry.text.find_register(s->scope, name);
  return r >= 0 && entry.text.registers[static_cast<size_t>(r)] == RegClass::kPred;
}

bool Decoder::symbol(const std::string& name, uint64_t& value) const {
  if (name == program.module.dynamic_shared) {
    value = (entry.shared_bytes + 1023) / 1024 * 1024;
    return true;
  }
  for (const Variable& v : entry.text.shared)
    if (v.name == name) return value = kSharedBase + v.offset, true;
  for (const Variable& v : entry.text.parameters)
    if (v.name == name) return value = v.offset, true;
  for (const Variable& v : entry.text.local)
    if (v.name == name) return value = v.offset, true;
  return false;
}

int64_t Decoder::immediate(const std::string& text) const {
  try {
    size_t end = 0;
    std::string t = text;
    if (!t.empty() && (t.back() == 'U' || t.back() == 'u')) t.pop_back();
    int64_t v = t[0] == '-' ? std::stoll(t, &end, 0) : static_cast<int64_t>(std::stoull(t, &end, 0));
    if (end == t.size()) return v;
  } catch (const std::exception&) {
  }
  fail("'" + text + "' is not an integer");
}

uint32_t Decoder::source(const std::string& text, Ty t) {
  bool wide = bits_of(t) == 64;
  int64_t reg = entry.text.find_register(s->scope, text);
  if (reg >= 0) {
    RegClass cls = entry.text.registers[static_cast<size_t>(reg)];
    if (cls == RegClass::kPred || cls == RegClass::k128) fail("operand '" + text + "' has the wrong kind of register");
    uint32_t v = virtual_register(reg);
    uses_.push_back(v);
    if (wide && cls != RegClass::k64) fail("operand '" + text + "' is narrower than its type");
    if (!wide && cls == RegClass::k64) {
      uint32_t narrow = temporary(false);
      Instr keep = in;
      std::vector<uint32_t> uses, defs;
      uses.swap(uses_);
      defs.swap(defs_);
      in = Instr();
      in.op[0] = narrow;
      in.op[1] = v;
      uses_ = {v};
      defs_ = {narrow};
      in.fn = run_truncate;
      emit();
      in = keep;
      uses_.swap(uses);
      defs_.swap(defs);
      uses_.push_back(narrow);
      return narrow;
    }
    return v;
  }
  if (!text.empty() && text[0] == '%') {
    auto it = special_names().find(text);
    if (it == special_names().end()) fail("special register '" + text + "' is not supported");
    return special(it->second, wide);
  }
  uint64_t value;
  if (symbol(text, value)) return constant(value, wide);
  for (const Variable& g : program.module.globals)
    if (g.name == text) return special(Special::kGlobals, wide, g.offset);
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'f' || text[1] == 'F'))
    return constant(std::stoull(text.substr(2), nullptr, 16), wide);
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'd' || text[1] == 'D'))
    return constant(std::stoull(text.substr(2), nullptr, 16), wide);
  if (is_float(t)) {
    uint64_t bits = 0;
    char* end = nullptr;
    if (t == Ty::kF32) {
      float f = std::strtof(text.c_str(), &end);
      std::memcpy(&bits, &f, 4);
    } else if (t == Ty::kF64) {
      double f = std::strtod(text.c_str(), &end);
      std::memcpy(&bits, &f, 8);
    }
    if (end && *end == 0 && end != text.c_str()) return constant(bits, wide);
  }
  uint64_t bits = static_cast<uint64_t>(immediate(text));
  if (!wide) bits &= 0xffffffffu;
  return constant(bits, wide);
}

uint32_t Decoder::destination(const std::string& text, Ty t) {
  bool wide = bits_of(t) == 64;
  if (text == "_") {
    uint32_t v = temporary(wide);
    defs_.push_back(v);
    return v;
  }
  int64_t reg = entry.text.find_register(s->scope, text);
  if (reg < 0) fail("'" + text + "' is not a register");
  RegClass cls = entry.text.registers[static_cast<size_t>(reg)];
  if (cls == RegClass::kPred || cls == RegClass::k128) fail("operand '" + text + "' has the wrong kind of register");
  uint32_t v = virtual_register(reg);
  if (wide && cls != RegClass::k64) fail("operand '" + text + "' is narrower than its type");
  if (!wide && cls == RegClass::k64) {
    uint32_t narrow = temporary(false);
    defs_.push_back(narrow);
    after_.push_back({narrow, v, is_signed(t)});
    return narrow;
  }
  defs_.push_back(v);
  return v;
}

uint32_t Decoder::predicate_source(const std::string& text) {
  bool negated = !text.empty() && text[0] == '!';
  std::string name = negated ? text.substr(1) : text;
  int64_t reg = entry.text.find_register(s->scope, name);
  if (reg < 0 && !name.empty() && name.find_first_not_of("-0123456789") == std::string::npos) {
    if (entry.true_predicate < 0) entry.true_predicate = static_cast<int32_t>(entry.predicates++);
    if (immediate(name) == 0) negated = !negated;
    return static_cast<uint32_t>(entry.true_predicate) | (negated ? 0x80000000u : 0);
  }
  if (reg < 0 || entry.text.registers[static_cast<size_t>(reg)] != RegClass::kPred)
    fail("'" + text + "' is not a predicate");
  int32_t& p = predicate_of_register_[static_cast<size_t>(reg)];
  if (p < 0) p = static_cast<int32_t>(entry.predicates++);
  return static_cast<uint32_t>(p) | (negated ? 0x80000000u : 0);
}

uint32_t Decoder::predicate_destination(const std::string& text) {
  if (text == "_") return kNone;
  if (!is_predicate(text) || text[0] == '!') fail("'" + text + "' is not a predicate");
  return predicate_source(text);
}

std::vector<std::string> Decoder::braces(const std::string& text) const {
  if (!text.empty() && text[0] == '{') return split_arguments(text.substr(1, text.rfind('}') - 1));
  return {text};
}

void Decoder::address(const std::string& text, int k) {
  if (text.size() < 2 || text[0] != '[' || text.back() != ']') fail("'" + text + "' is not an address");
  std::string inside = trim(text.substr(1, text.size() - 2)), base = inside;
  in.imm = 0;
  size_t plus = inside.find('+');
  if (plus != std::string::npos) {
    base = trim(inside.substr(0, plus));
    in.imm = immediate(trim(inside.substr(plus + 1)));
  }
  in.address64 = !(is_register(base) && register_class(base) == RegClass::k32);
  in.op[k] = source(base, in.address64 ? Ty::kU64 : Ty::kU32);
}

void Decoder::set_list(const std::vector<uint32_t>& slots) {
  in.list = static_cast<uint32_t>(entry.lists.size());
  in.list_size = static_cast<uint16_t>(slots.size());
  entry.lists.insert(entry.lists.end(), slots.begin(), slots.end());
}

void Decoder::emit() {
  in.statement = static_cast<uint32_t>(s - entry.text.statements.data());
  if (!s->guard.empty() && in.fn != run_truncate) {
    in.guard = static_cast<int32_t>(predicate_source(s->guard));
    in.guard_negated = s->guard_negated;
  }
  entry.code.push_back(in);
  touches_.push_back({std::move(uses_), std::move(defs_)});
  uses_.clear();
  defs_.clear();
  if (in.fn == run_truncate) return;
  std::vector<After> after;
  after.swap(after_);
  for (const After& a : after) {
    in = Instr();
    in.op[0] = a.to;
    in.op[1] = a.from;
    in.fn = a.is_signed ? run_extend_signed : run_extend_unsigned;
    uses_ = {a.from};
    defs_ = {a.to};
    emit();
  }
  in = Instr();
}

void Decoder::run() {
  virtual_of_register_.assign(entry.text.registers.size(), -1);
  predicate_of_register_.assign(entry.text.registers.size(), -1);
  entry.shared_bytes = static_cast<uint32_t>(kSharedBase + entry.text.static_shared);
  for (const Statement& statement : entry.text.statements) {
    s = &statement;
    mods = split_dots(s->opcode);
    in = Instr();
    statement_start_.push_back(static_cast<uint32_t>(entry.code.size()));
    bool known = decode_control(*this) || decode_move(*this) || decode_memory(*this) || decode_convert(*this) ||
                 decode_compare(*this) || decode_half(*this) || decode_float(*this) || decode_integer(*this) ||
                 decode_bits(*this) || decode_warp(*this) || decode_atomic(*this) || decode_sync(*this) ||
                 decode_async(*this) || decode_matrix(*this) || decode_wgmma(*this);
    if (!known) fail("opcode not supported");
  }
  statement_start_.push_back(static_cast<uint32_t>(entry.code.size()));
  for (auto [instr, statement] : branches_) entry.code[instr].target = statement_start_[statement];
  for (Instr& i : entry.code) {
    if (i.mode == 0xff)  // brx: the list holds statement indices
      for (uint32_t k = 0; k < i.list_size; ++k) entry.lists[i.list + k] = statement_start_[entry.lists[i.list + k]];
  }
  allocate();
}

void run_truncate(Warp& w, const Instr& in, uint32_t mask) {
  const uint64_t* a = w.in<uint64_t>(in.op[1]);
  uint32_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = static_cast<uint32_t>(a[l]);
  commit(w, in.op[0], out, mask);
}

void run_extend_signed(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t* a = w.in<uint32_t>(in.op[1]);
  uint64_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l)
    out[l] = static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(a[l])));
  commit(w, in.op[0], out, mask);
}

void run_extend_unsigned(Warp& w, const Instr& in, uint32_t mask) {
  const uint32_t* a = w.in<uint32_t>(in.op[1]);
  uint64_t out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = a[l];
  commit(w, in.op[0], out, mask);
}

}  // namespace kernelforge::vcuda
