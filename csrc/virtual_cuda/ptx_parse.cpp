#include <algorithm>
#include <cctype>
#include <cstring>

#include "ptx.h"

namespace kernelforge::vcuda {
namespace {

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%'; }

// Comments become blanks; newlines stay, so that line numbers stay.
std::string strip_comments(const std::string& text) {
  std::string out = text;
  for (size_t i = 0; i + 1 < out.size(); ++i) {
    if (out[i] == '"') {
      for (++i; i < out.size() && out[i] != '"'; ++i) {
      }
    } else if (out[i] == '/' && out[i + 1] == '/') {
      for (; i < out.size() && out[i] != '\n'; ++i) out[i] = ' ';
    } else if (out[i] == '/' && out[i + 1] == '*') {
      for (; i < out.size() && !(out[i] == '*' && i + 1 < out.size() && out[i + 1] == '/'); ++i)
        if (out[i] != '\n') out[i] = ' ';
      if (i + 1 < out.size()) out[i] = out[i + 1] = ' ';
    }
  }
  return out;
}

std::string collapse(const std::string& text) {
  std::string out;
  bool blank = false;
  for (char c : text) {
    if (std::isspace(static_cast<unsigned char>(c))) {
      blank = !out.empty();
    } else {
      if (blank) out += ' ';
      blank = false;
      out += c;
    }
  }
  return out;
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> out;
  std::string word;
  for (char c : text) {
    if (std::isspace(static_cast<unsigned char>(c))) {
      if (!word.empty()) out.push_back(word);
      word.clear();
    } else {
      word += c;
    }
  }
  if (!word.empty()) out.push_back(word);
  return out;
}

uint32_t type_bytes(const std::string& type) {
  if (type == ".pred") return 1;
  size_t digit = type.find_first_of("0123456789");
  if (digit == std::string::npos) throw PtxError("PTX type '" + type + "' has no width");
  uint32_t bytes = static_cast<uint32_t>(std::stoul(type.substr(digit))) / 8;
  return type.find("x2") != std::string::npos ? 2 * bytes : bytes;
}

RegClass type_class(const std::string& type) {
  if (type == ".pred") return RegClass::kPred;
  switch (type_bytes(type)) {
    case 1:
    case 2:
      return RegClass::k16;
    case 4:
      return RegClass::k32;
    case 8:
      return RegClass::k64;
    case 16:
      return RegClass::k128;
  }
  throw PtxError("register type '" + type + "' is not supported");
}

// ".visible .shared .align 16 .b8 name[32]" -> name, align, size in bytes. Offsets are given by `place`.
Variable parse_variable(const std::string& text, std::string* element_type = nullptr) {
  std::string spaced;
  for (char c : text) {
    if (c == '[') spaced += ' ';
    spaced += c;
  }
  Variable v;
  std::string type;
  uint64_t count = 1;
  std::vector<std::string> parts = words(spaced);
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string& w = parts[i];
    if (w == ".align" || w == ".ptr") {
      if (w == ".align") v.align = static_cast<uint32_t>(std::stoul(parts.at(++i)));
    } else if (w[0] == '.') {
      if (w.find_first_of("0123456789") != std::string::npos) type = w;
    } else if (w[0] == '[') {
      std::string n = w.substr(1, w.find(']') - 1);
      count *= n.empty() ? 0 : std::stoull(n, nullptr, 0);
    } else if (v.name.empty()) {
      v.name = w;
    }
  }
  if (type.empty() || v.name.empty()) throw PtxError("cannot read the declaration '" + text + "'");
  uint32_t bytes = type_bytes(type);
  v.align = std::max(v.align, bytes);
  v.size = bytes * count;
  if (element_type) *element_type = type;
  return v;
}

void place(std::vector<Variable>& into, Variable v, uint64_t& used) {
  used = (used + v.align - 1) / v.align * v.align;
  v.offset = used;
  used += v.size;
  into.push_back(std::move(v));
}

class BodyParser {
 public:
  BodyParser(EntryText& entry, const std::string& text, size_t begin, size_t end, uint32_t line)
      : entry_(entry), text_(text), end_(end), pos_(begin), line_(line) {
    entry_.scopes.emplace_back();
    stack_.push_back(0);
  }

  void run() {
    std::string buffer;
    uint32_t start = line_;
    int braces = 0;
    for (; pos_ < end_; ++pos_) {
      char c = text_[pos_];
      bool empty = trim(buffer).empty();
      if (c == '\n') {
        ++line_;
        if (!empty && is_line_directive(buffer)) {
          directive(buffer);
          buffer.clear();
          continue;
        }
      }
      if (empty) {
        buffer.clear();
        start = line_;
        if (c == '{') {
          open();
          continue;
        }
        if (c == '}') {
          if (stack_.size() < 2) throw PtxError("PTX line " + std::to_string(line_) + ": unmatched '}'");
          stack_.pop_back();
          continue;
        }
      }
      if (c == ';') {
        statement(collapse(buffer), start);
        buffer.clear();
        braces = 0;
      } else if (c == ':' && is_label(buffer) && text_[pos_ + 1] != ':') {
        scope().labels[trim(buffer)] = static_cast<uint32_t>(entry_.statements.size());
        last_label_ = trim(buffer);
        buffer.clear();
      } else {
        braces += c == '{' ? 1 : c == '}' ? -1 : 0;
        buffer += c;
      }
    }
  }

 private:
  Scope& scope() { return entry_.scopes[static_cast<size_t>(stack_.back())]; }

  void open() {
    Scope s;
    s.parent = stack_.back();
    entry_.scopes.push_back(std::move(s));
    stack_.push_back(static_cast<int>(entry_.scopes.size()) - 1);
  }

  static bool is_label(const std::string& buffer) {
    std::string t = trim(buffer);
    return !t.empty() && std::all_of(t.begin(), t.end(), is_word);
  }

  static bool is_line_directive(const std::string& buffer) {
    std::string t = trim(buffer);
    return t.rfind(".loc", 0) == 0 || t.rfind(".file", 0) == 0;
  }

  void directive(const std::string& buffer) {
    std::vector<std::string> w = words(buffer);
    if (w[0] == ".loc" && w.size() >= 3) {
      file_ = std::stoi(w[1]);
      file_line_ = static_cast<uint32_t>(std::stoul(w[2]));
    }
  }

  void declare_registers(const std::string& text) {
    std::vector<std::string> w = words(text);
    RegClass cls = type_class(w.at(1));
    std::string names = text.substr(text.find(w[1]) + w[1].size());
    for (std::string name : split_arguments(names)) {
      name = trim(name);
      size_t angle = name.find('<');
      uint32_t base = static_cast<uint32_t>(entry_.registers.size());
      if (angle == std::string::npos) {
        scope().registers[name] = base;
        entry_.registers.push_back(cls);
      } else {
        uint32_t count = static_cast<uint32_t>(std::stoul(name.substr(angle + 1)));
        scope().ranges.push_back({name.substr(0, angle), base, count});
        entry_.registers.insert(entry_.registers.end(), count, cls);
      }
    }
  }

  void statement(const std::string& text, uint32_t line) {
    if (text.empty()) return;
    if (text[0] == '.') {
      if (text.rfind(".reg", 0) == 0) {
        declare_registers(text);
      } else if (text.rfind(".shared", 0) == 0) {
        place(entry_.shared, parse_variable(text), entry_.static_shared);
      } else if (text.rfind(".local", 0) == 0) {
        place(entry_.local, parse_variable(text), entry_.local_bytes);
      } else if (text.rfind(".branchtargets", 0) == 0) {
        scope().branch_targets[last_label_] = split_arguments(text.substr(14));
      } else if (text.rfind(".pragma", 0) != 0) {
        throw PtxError("PTX line " + std::to_string(line) + ": directive '" + text + "' is not supported");
      }
      return;
    }
    Statement s;
    s.text = text;
    s.line = line;
    s.scope = stack_.back();
    s.source_file = file_;
    s.source_line = file_line_;
    std::string rest = text;
    if (rest[0] == '@') {
      size_t blank = rest.find(' ');
      if (blank == std::string::npos)
        throw PtxError("PTX line " + std::to_string(line) + ": guard without an instruction");
      s.guard = rest.substr(1, blank - 1);
      if (!s.guard.empty() && s.guard[0] == '!') {
        s.guard_negated = true;
        s.guard = s.guard.substr(1);
      }
      rest = trim(rest.substr(blank));
    }
    size_t blank = rest.find(' ');
    s.opcode = rest.substr(0, blank);
    if (blank != std::string::npos) {
      // "bulk_group .L2::cache_hint [..]": modifiers may follow a blank when string literals were joined.
      rest = trim(rest.substr(blank));
      while (!rest.empty() && rest[0] == '.') {
        blank = rest.find(' ');
        s.opcode += rest.substr(0, blank);
        rest = blank == std::string::npos ? "" : trim(rest.substr(blank));
      }
      s.arguments = split_arguments(rest);
    }
    entry_.statements.push_back(std::move(s));
  }

  EntryText& entry_;
  const std::string& text_;
  size_t end_, pos_;
  uint32_t line_;
  std::vector<int> stack_;
  std::string last_label_;
  int file_ = 0;
  uint32_t file_line_ = 0;
};

size_t matching(const std::string& text, size_t open, char a, char b) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == a) ++depth;
    if (text[i] == b && --depth == 0) return i;
  }
  throw PtxError(std::string("PTX text ends inside '") + a + "'");
}

void parse_entry(Module& module, const std::string& text, size_t begin, size_t open, size_t close, uint32_t line) {
  std::string head = text.substr(begin, open - begin);
  EntryText entry;
  size_t name = head.find(".entry") + 6;
  size_t paren = head.find('(', name);
  entry.name = trim(head.substr(name, paren == std::string::npos ? std::string::npos : paren - name));
  size_t tail = 0;
  if (paren != std::string::npos) {
    size_t end = matching(head, paren, '(', ')');
    for (const std::string& p : split_arguments(head.substr(paren + 1, end - paren - 1)))
      if (!trim(p).empty()) place(entry.parameters, parse_variable(collapse(p)), entry.parameter_bytes);
    tail = end + 1;
  }
  std::string directives = head.substr(tail);
  size_t at = directives.find(".maxntid");
  if (at != std::string::npos) {
    entry.max_threads = 1;
    std::string list = directives.substr(at + 8);
    list = list.substr(0, list.find('.'));
    for (const std::string& n : split_arguments(list)) entry.max_threads *= static_cast<uint32_t>(std::stoul(n));
  }
  entry.shared = module.static_shared;
  entry.static_shared = module.static_shared_bytes;
  line += static_cast<uint32_t>(
      std::count(text.begin() + static_cast<long>(begin), text.begin() + static_cast<long>(open), '\n'));
  BodyParser(entry, text, open + 1, close, line).run();
  module.entries.push_back(std::move(entry));
}

void parse_global(Module& module, const std::string& text) {
  size_t equals = text.find('=');
  std::string type;
  Variable v = parse_variable(text.substr(0, equals), &type);
  uint64_t used = module.global_image.size();
  place(module.globals, v, used);
  module.global_image.resize(used);
  if (equals == std::string::npos) return;
  std::string values = trim(text.substr(equals + 1));
  if (!values.empty() && values[0] == '{') values = values.substr(1, values.rfind('}') - 1);
  uint64_t at = module.globals.back().offset, bytes = type_bytes(type);
  for (const std::string& item : split_arguments(values)) {
    std::string value = trim(item);
    uint64_t bits = 0;
    if (value.size() > 2 && value[0] == '0' &&
        (value[1] == 'f' || value[1] == 'F' || value[1] == 'd' || value[1] == 'D'))
      bits = std::stoull(value.substr(2), nullptr, 16);
    else if (value.find_first_not_of("0123456789abcdefABCDEFxX-U") == std::string::npos)
      bits = value[0] == '-' ? static_cast<uint64_t>(std::stoll(value, nullptr, 0)) : std::stoull(value, nullptr, 0);
    else
      throw PtxError("initializer '" + value + "' of '" + v.name + "' is not supported");
    if (at + bytes > used) throw PtxError("too many initializers for '" + v.name + "'");
    std::memcpy(module.global_image.data() + at, &bits, bytes);
    at += bytes;
  }
}

}  // namespace

Module parse_module(const std::string& original) {
  const std::string text = strip_comments(original);
  Module module;
  uint32_t line = 1;
  size_t pos = 0;
  auto advance = [&](size_t to) {
    line += static_cast<uint32_t>(std::count(text.begin() + static_cast<long>(pos),
                                             text.begin() + static_cast<long>(std::min(to, text.size())), '\n'));
    pos = std::min(to, text.size());
  };
  while (true) {
    size_t begin = text.find_first_not_of(" \t\r\n;", pos);
    if (begin == std::string::npos) break;
    advance(begin);
    size_t newline = std::min(text.find('\n', pos), text.size());
    std::string first = text.substr(pos, newline - pos);
    bool by_line = false;
    for (const char* d : {".version", ".target", ".address_size", ".file", ".loc"}) by_line |= first.rfind(d, 0) == 0;
    if (by_line) {
      std::vector<std::string> w = words(first);
      if (w[0] == ".target") module.target = w.at(1).substr(0, w.at(1).find(','));
      if (w[0] == ".file" && w.size() >= 3) {
        size_t a = first.find('"'), b = first.rfind('"');
        if (a != b) module.files[std::stoi(w[1])] = first.substr(a + 1, b - a - 1);
      }
      advance(newline);
      continue;
    }
    size_t semicolon = text.find(';', pos), brace = text.find('{', pos);
    bool variable = false;
    std::string head = text.substr(pos, std::min({semicolon, brace, text.size()}) - pos);
    for (const char* d : {".global", ".const", ".shared"}) variable |= head.find(d) != std::string::npos;
    bool function = head.find(".entry") != std::string::npos || head.find(".func") != std::string::npos;
    if (variable && !function) {
      if (semicolon == std::string::npos)
        throw PtxError("PTX line " + std::to_string(line) + ": declaration without ';'");
      std::string declaration = collapse(text.substr(pos, semicolon - pos));
      if (declaration.find(".shared") == std::string::npos)
        parse_global(module, declaration);
      else if (declaration.find(".extern") != std::string::npos)
        module.dynamic_shared = parse_variable(declaration).name;
      else
        place(module.static_shared, parse_variable(declaration), module.static_shared_bytes);
      advance(semicolon + 1);
    } else if (brace != std::string::npos && (semicolon == std::string::npos || brace < semicolon)) {
      size_t close = matching(text, brace, '{', '}');
      if (head.find(".entry") != std::string::npos) parse_entry(module, text, pos, brace, close, line);
      advance(close + 1);
    } else if (semicolon != std::string::npos) {
      advance(semicolon + 1);  // a prototype without a body
    } else {
      throw PtxError("PTX line " + std::to_string(line) + ": cannot read '" + first + "'");
    }
  }
  if (module.entries.empty()) throw PtxError("the PTX text holds no .entry");
  return module;
}

}  // namespace kernelforge::vcuda
