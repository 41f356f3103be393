#include "tests/cedar_generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "cedar/parser.h"
#include "cedar/schema.h"
#include "cedar/text.h"
#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

constexpr std::string_view decimals[] = {
    "1.5", "-0.0001", "0.0", "12.3400", "922337203685477.5807", "-922337203685477.5808"};
constexpr std::string_view ips[] = {"10.0.0.0/8", "10.1.2.3", "127.0.0.1", "::1",  "ff00::/8",
                                    "10.0.0.0/7", "e0::/3",   "224.0.0.1", "::/0", "1:2:3:4:5:6:7:8/64"};
constexpr std::string_view datetimes[] = {"1970-01-01",
                                          "2024-02-29T12:00:00Z",
                                          "1969-12-31T23:59:59.999Z",
                                          "2024-01-01T00:00:00+0130",
                                          "2024-01-01T23:59:59.999-2359",
                                          "9999-12-31T23:59:59.999Z",
                                          "0000-01-01"};
constexpr std::string_view durations[] = {
    "1ms", "-1d2h", "1d2h3m4s5ms", "0s", "59m", "9223372036854775807ms", "-9223372036854775808ms"};
/// Some that are none.
constexpr std::string_view wrong_literals[] = {"",
                                               "x",
                                               "1",
                                               "1.",
                                               "1.12345",
                                               "922337203685477.5808",
                                               "10.0.0.1/33",
                                               "1.2.3",
                                               "::1::",
                                               "01.2.3.4",
                                               "::ffff:1.2.3.4",
                                               "10.0.0.0/08",
                                               "2023-02-29",
                                               "2024-1-1",
                                               "+1d",
                                               "1h1d",
                                               "1d ",
                                               "2024-01-01T00:00:00",
                                               "1ms1s",
                                               "--1ms",
                                               "1.5s",
                                               "2024-01-01Z",
                                               "2024-01-01T24:00:00Z",
                                               "9223372036854775808ms"};
/// What Cedar refuses, or may not be what it looks like.
constexpr std::string_view odd_expressions[] = {"9223372036854775808",
                                                "-9223372036854775809",
                                                "99999999999999999999",
                                                "?principal",
                                                "a",
                                                "1 < 2 < 3",
                                                R"("\q")",
                                                R"("\u{110000}")",
                                                "1 / 2",
                                                "--1",
                                                "!!!!true",
                                                "!!!!!true",
                                                "----1",
                                                "-----1",
                                                "9223372036854775807 + 1",
                                                "-(-9223372036854775808)",
                                                "{if: 1}",
                                                R"({"if": 1})",
                                                "[1,]",
                                                "{a: 1,}",
                                                "principal.if",
                                                "principal has if",
                                                R"(principal has "a".b)",
                                                "(principal == resource) == true",
                                                "principal == resource == true",
                                                R"(U::"a".n)",
                                                R"(Action::"p".n)",
                                                "principal in [1]",
                                                "1 in principal",
                                                "principal is 1",
                                                "principal is U in U",
                                                "0x10",
                                                "01",
                                                R"("a" like "\*")",
                                                R"("a" like context.s)",
                                                "[].isEmpty()",
                                                "[] == {}",
                                                "{} == {}",
                                                R"(ip("::1", "::1"))",
                                                "principal has r.if",
                                                R"(principal has "r.n")",
                                                "principal.r .n",
                                                "context[\"s\"]",
                                                "context[s]",
                                                "(1)",
                                                "((true))",
                                                "principal has a.b.c.d",
                                                "1 + 2 * 3 - -4",
                                                "if true then 1 else 2 + 3",
                                                "true && if true then false else true",
                                                R"(principal is U::"a")",
                                                "principal in (resource)",
                                                "principal is U in resource",
                                                "[principal, 1, true]",
                                                "N::U",
                                                "decimal",
                                                R"(N::decimal("1.0"))",
                                                "__cedar",
                                                "true.n",
                                                R"("a".contains("a"))",
                                                "-principal",
                                                "!1"};
constexpr std::string_view texts[] = {"", "x", "xy", "a*b", "\xC3\xA9", "a\"b\\c", "\n", "*", "10.1.2.3", "1.5", "1d"};

std::string literal(std::string_view function, std::string_view argument) {
  return fmt::format("{}({})", function, quote(argument));
}

}  // namespace

std::string generated_schema() {
  constexpr std::string_view shape =
      R"({ n: Long, m?: Long, "odd name"?: Long, f?: Bool, "if"?: Bool, s?: String, "\u{e9}"?: String, e?: U, o?: D,
  es?: Set<U>, ns?: Set<Long>, ss?: Set<String>, r?: Inner, d?: decimal, i?: ipaddr, t?: datetime, v?: duration })";
  return fmt::format(
      R"(type Inner = {{ n?: Long, s?: String, f?: Bool, r?: {{ n?: Long, t?: datetime, "odd name"?: Long }} }};
entity U in [U, G] = {0} tags Long;
entity G in G = {0};
entity D in [D, G] = {0} tags String;
namespace N {{ entity T in [T, G] = {0} tags Set<Long>; action x; action y appliesTo {{ principal: T, resource: [D, T] }}; }}
action s;
action r in [s];
action q in [r, s] appliesTo {{ principal: [U, N::T], resource: [D, N::T], context: {0} }};
action p in [N::Action::"x"] appliesTo {{ principal: [U], resource: [D, G], context: Inner }};
)",
      shape);
}

// --- values

EntityUid Generator::uid() {
  static constexpr std::string_view types[] = {"U", "U", "U", "D", "D", "D", "G", "G", "N::T"};
  static constexpr std::string_view ids[] = {"a", "a", "b", "b", "c", "d", "\xC3\xA9 \"q\""};
  return {std::string(chance(2) ? "X" : one_of(types)), std::string(one_of(ids))};
}

EntityUid Generator::action() {
  static constexpr std::string_view ids[] = {"p", "q", "r", "s"};
  if (chance(10)) return {"N::Action", chance(50) ? "x" : "y"};
  return {"Action", std::string(one_of(ids))};
}

std::string_view Generator::name(Kind kind) {
  if (wild(3)) kind = any_kind();
  switch (kind) {
    case Kind::boolean:
      return chance(80) ? "f" : "if";
    case Kind::integer:
      return limits_.tame ? "n" : one_of({"n", "n", "m", "odd name"});
    case Kind::text:
      return one_of({"s", "s", "s", "\xC3\xA9"});
    case Kind::entity:
      return one_of({"e", "e", "o"});
    case Kind::set:
      return one_of({"es", "es", "ns", "ss"});
    case Kind::record:
      return "r";
    case Kind::decimal:
      return "d";
    case Kind::ip:
      return "i";
    case Kind::datetime:
      return "t";
    case Kind::duration:
      return "v";
  }
  return "n";
}

Value Generator::value(Kind kind, int depth) {
  if (chance(3)) kind = any_kind();
  const auto made = [](auto result) {
    CRETO_ASSERT(result);
    return Value(*result);
  };
  switch (kind) {
    case Kind::boolean:
      return chance(50);
    case Kind::integer:
      // No further than other readers of JSON carry whole numbers.
      return chance(5) ? std::int64_t{1} << 52 : static_cast<std::int64_t>(below(5)) - 1;
    case Kind::text:
      return one_of(texts);
    case Kind::entity:
      return chance(10) ? action() : uid();
    case Kind::decimal:
      return made(parse_decimal(one_of(decimals)));
    case Kind::ip:
      return made(parse_ip(one_of(ips)));
    case Kind::datetime:
      return made(parse_datetime(one_of(datetimes)));
    case Kind::duration:
      return made(parse_duration_value(one_of(durations)));
    case Kind::record:
      if (depth <= 0) return Value::record({});
      return Value::record(attributes(depth - 1));
    case Kind::set: {
      std::vector<Value> elements;
      const Kind of = depth <= 0 ? Kind::integer : chance(60) ? Kind::entity : any_kind();
      for (auto n = below(4); n > 0; --n) elements.push_back(value(of, depth - 1));
      return Value::set(std::move(elements));
    }
  }
  return false;
}

Attributes Generator::attributes(int depth) {
  Attributes all;
  for (std::size_t i = 0; i < kinds; ++i) {
    const auto kind = static_cast<Kind>(i);
    if (chance(kind == Kind::integer ? 90 : depth >= 2 ? 50 : 30)) all.emplace_back(name(kind), value(kind, depth - 1));
  }
  return all;
}

std::string Generator::tag() { return std::string(one_of({"a", "b", "n", "odd name"})); }

Entity Generator::entity(EntityUid uid) {
  Entity entity{std::move(uid), attributes(3), {}, {}};
  const bool is_action = is_action_type(entity.uid.type);
  if (is_action) entity.attributes.clear();
  for (auto n = is_action ? 0 : below(4); n > 0; --n) {
    const Kind kind = entity.uid.type == "D" ? Kind::text : entity.uid.type == "N::T" ? Kind::set : Kind::integer;
    entity.tags.emplace_back(tag(), value(kind, 1));
  }
  for (auto n = below(4); n > 0; --n) {
    EntityUid parent = is_action ? action() : this->uid();
    if (limits_.cycles || entity.uid < parent) entity.parents.push_back(std::move(parent));
  }
  normalise(entity);
  return entity;
}

Request Generator::request() {
  return {chance(97) ? uid() : action(), chance(95) ? action() : uid(), chance(97) ? uid() : action(),
          Value::record(attributes(3))};
}

// --- policies

std::string Generator::policy(bool slots) {
  std::string text;
  if (chance(10)) text += one_of({"@id(\"x\") ", "@note ", "@a(\"\") @b(\"\\n\") "});
  text += chance(70) ? "permit(" : "forbid(";
  const auto slotted = slots ? 1 + below(3) : 0;
  text += scope("principal", slotted & 1 ? "?principal" : "");
  switch (below(8)) {
    case 0:
      text += fmt::format(", action == {}, ", action().to_string());
      break;
    case 1:
      text += fmt::format(", action in {}, ", action().to_string());
      break;
    case 2:
      text += fmt::format(", action in [{}, {}], ", action().to_string(), action().to_string());
      break;
    case 3:
      text += chance(10) ? ", action in [], " : fmt::format(", action in [{}], ", action().to_string());
      break;
    default:
      text += ", action, ";
  }
  text += scope("resource", slotted & 2 ? "?resource" : "") + ")";
  for (auto n = below(3); n > 0; --n) {
    std::string condition = boolean(4);
    if (chance(30)) condition = fmt::format("{} && ({})", about_the_request(), condition);
    text += fmt::format(" {} {{ {} }}", chance(70) ? "when" : "unless", condition);
  }
  return text + ";";
}

std::string Generator::about_the_request() {
  const bool of_action = chance(20);
  const std::string_view variable = of_action ? "action" : one_of({"principal", "resource"});
  const auto entity = [&] { return (of_action ? action() : uid()).to_string(); };
  switch (below(6)) {
    case 0:
      return fmt::format("{} == {}", variable, entity());
    case 1:
      return fmt::format("{} == {}", entity(), variable);
    case 2:
      return fmt::format("{} in {}", variable, entity());
    case 3:
      return chance(10) ? fmt::format("{} in []", variable)
                        : fmt::format("{} in [{}, {}]", variable, entity(), entity());
    case 4:
      return fmt::format("{} is {} in {}", variable, uid().type, entity());
    default:
      return fmt::format("{} is {}", variable, uid().type);
  }
}

std::string Generator::scope(std::string_view variable, std::string_view slot) {
  const std::string target = slot.empty() ? uid().to_string() : std::string(slot);
  switch (below(slot.empty() ? 10 : 3)) {
    case 0:
      return fmt::format("{} == {}", variable, target);
    case 1:
      return fmt::format("{} in {}", variable, target);
    case 2:
      return fmt::format("{} is {} in {}", variable, uid().type, target);
    case 3:
      return fmt::format("{} is {}", variable, uid().type);
    default:
      return std::string(variable);
  }
}

std::string Generator::access(std::string_view name) {
  return is_identifier(name) && !is_reserved(name) && !chance(5) ? fmt::format(".{}", name)
                                                                 : fmt::format("[{}]", quote(name));
}

std::string Generator::expression(Kind kind, int depth) {
  if (wild(2)) kind = any_kind();
  if (depth > 0) {
    const auto how = below(100);
    if (how < 18 && (!limits_.tame || kind == Kind::integer)) return holder(depth - 1) + access(name(kind));
    if (how >= 18 && how < 24)
      return fmt::format("(if {} then {} else {})", boolean(depth - 1), expression(kind, depth - 1),
                         expression(kind, depth - 1));
    if (how >= 24 && how < 28 && !limits_.tame) return fmt::format("{}.getTag({})", entity(depth - 1), text(depth - 2));
    if (how >= 28 && how < 30 && !limits_.tame) return broken(depth - 1);
  }
  switch (kind) {
    case Kind::boolean:
      return boolean(depth);
    case Kind::integer:
      return integer(depth);
    case Kind::text:
      return text(depth);
    case Kind::entity:
      return entity(depth);
    case Kind::set:
      return set(depth);
    case Kind::record:
      return record(depth);
    default:
      return extension(kind, depth);
  }
}

std::string Generator::holder(int depth) {
  switch (below(limits_.tame ? 3 : depth > 0 ? 8 : 5)) {
    case 0:
    case 1:
      return "principal";
    case 2:
      return "resource";
    case 3:
    case 4:
      return "context";
    case 5:
      return expression(Kind::record, depth - 1);
    default:
      return expression(Kind::entity, depth - 1);
  }
}

/// What Cedar refuses, or what errs whenever it is reached.
std::string Generator::broken(int depth) {
  const std::string any = expression(any_kind(), depth - 1);
  switch (below(12)) {
    case 0:
      return literal(one_of({"ip", "decimal", "datetime", "duration"}), one_of(wrong_literals));
    case 1:
      return fmt::format("{}({})", one_of({"ip", "decimal", "datetime", "duration"}), any);
    case 2:
      return fmt::format("{{a: 1, b: {}, \"a\": 2}}", any);
    case 3:
      return fmt::format("{}.{}()", any, one_of({"contains", "isIpv4", "toDays", "isEmpty", "offset", "size", "ip"}));
    case 4:
      return fmt::format("{}.{}({}, 1)", any, one_of({"contains", "isIpv4", "hasTag", "isEmpty", "lessThan"}), any);
    case 5:
      return fmt::format("{}({})", one_of({"isIpv4", "contains", "like", "ip2", "U"}), any);
    case 6:
      return std::string(one_of(odd_expressions));
    default:
      return any;
  }
}

std::string Generator::integer(int depth) {
  if (depth <= 0 || chance(35)) {
    if (chance(92)) return chance(80) ? std::to_string(below(4)) : fmt::format("-{}", below(4));
    return std::string(one_of({"9223372036854775807", "-9223372036854775808", "4611686018427387904", "3037000500",
                               "-3037000500", "(-9223372036854775807)"}));
  }
  switch (below(5)) {
    case 0:
      return fmt::format("-{}", holder(depth - 1) + access(name(Kind::integer)));
    case 1:
      return fmt::format("-({})", expression(Kind::integer, depth - 1));
    case 2:
      return fmt::format("{}.{}()", expression(Kind::duration, depth - 1),
                         one_of({"toMilliseconds", "toSeconds", "toMinutes", "toHours", "toDays"}));
    default:
      return fmt::format("({} {} {})", expression(Kind::integer, depth - 1), one_of({"+", "-", "*"}),
                         expression(Kind::integer, depth - 1));
  }
}

std::string Generator::text(int depth) {
  if (depth > 0 && wild(40)) return holder(depth - 1) + access(name(Kind::text));
  return std::string(one_of({R"("")", R"("x")", R"("xy")", R"("a*b")", R"("\u{e9}")", R"("a\"b\\c")", R"("\n")",
                             R"("*")", R"("a")", R"("n")", R"("odd name")", R"("\x41\'\0\t\r")"}));
}

std::string Generator::entity(int depth) {
  switch (below(depth > 0 && !limits_.tame ? 7 : 5)) {
    case 0:
    case 1:
      return "principal";
    case 2:
      return "resource";
    case 3:
      return uid().to_string();
    case 4:
      return "action";
    default:
      return holder(depth - 1) + access(name(Kind::entity));
  }
}

std::string Generator::set(int depth) {
  if (depth > 0 && wild(40)) return holder(depth - 1) + access(name(Kind::set));
  if (wild(5)) return "[]";
  const Kind kind = limits_.tame ? Kind::integer : chance(50) ? Kind::entity : any_kind();
  std::string list;
  for (auto n = 1 + below(3); n > 0; --n)
    list +=
        (list.empty() ? "" : ", ") + (depth <= 0 && !limits_.tame ? uid().to_string() : expression(kind, depth - 1));
  return "[" + list + "]";
}

std::string Generator::record(int depth) {
  if (depth <= 0) return chance(80) ? "context" : "{}";
  if (wild(60)) return holder(depth - 1) + access("r");
  std::map<std::string_view, std::string> members;
  for (auto n = below(3); n > 0; --n) {
    const Kind kind = any_kind();
    members.emplace(name(kind), expression(kind, depth - 1));
  }
  std::string list;
  for (const auto& [name, member] : members)
    list += fmt::format("{}{}: {}", list.empty() ? "" : ", ", quote(name), member);
  return "{" + list + "}";
}

std::string Generator::extension(Kind kind, int depth) {
  switch (kind) {
    case Kind::decimal:
      return literal("decimal", wild(5) ? one_of(wrong_literals) : one_of(decimals));
    case Kind::ip:
      return literal("ip", wild(5) ? one_of(wrong_literals) : one_of(ips));
    case Kind::datetime:
      if (depth > 0 && chance(30))
        return fmt::format("{}.offset({})", expression(Kind::datetime, depth - 1),
                           expression(Kind::duration, depth - 1));
      if (depth > 0 && chance(20)) return fmt::format("{}.toDate()", expression(Kind::datetime, depth - 1));
      return literal("datetime", wild(5) ? one_of(wrong_literals) : one_of(datetimes));
    default:
      if (depth > 0 && chance(30))
        return fmt::format("{}.durationSince({})", expression(Kind::datetime, depth - 1),
                           expression(Kind::datetime, depth - 1));
      if (depth > 0 && chance(20)) return fmt::format("{}.toTime()", expression(Kind::datetime, depth - 1));
      return literal("duration", wild(5) ? one_of(wrong_literals) : one_of(durations));
  }
}

std::string Generator::boolean(int depth) {
  if (depth <= 0) return chance(30) ? chance(50) ? "true" : "false" : "principal == " + entity(0);
  switch (below(15)) {
    case 0:
    case 1: {
      std::string text = boolean(depth - 1);
      for (auto n = 1 + below(3); n > 0; --n) text += " && " + boolean(depth - 1);
      return "(" + text + ")";
    }
    case 2:
      return fmt::format("({} || {})", boolean(depth - 1), boolean(depth - 1));
    case 3:
      return fmt::format("!{}", wild(50) ? holder(depth - 1) + access("f") : "(" + boolean(depth - 1) + ")");
    case 4:
    case 5:
      return comparison(depth);
    case 6:
    case 7:
    case 8:
      return about_entities(depth);
    case 9:
    case 10:
      return about_sets(depth);
    case 11:
      return fmt::format("({} like {})", expression(Kind::text, depth - 1),
                         one_of({R"("x*")", R"("*")", R"("*y")", R"("x")", R"("")", R"("a\*b")", R"("*\**")", R"("**")",
                                 R"("\u{e9}*")", R"("*\\*")", R"("a*b*c")"}));
    case 12:
      return guarded(depth);
    case 13:
      return method(depth);
    default:
      return expression(Kind::boolean, depth - 1);
  }
}

std::string Generator::comparison(int depth) {
  if (chance(50)) {
    const Kind kind = any_kind();
    return fmt::format("({} {} {})", expression(kind, depth - 1),
                       chance(70) ? "==" : "!=", expression(kind, depth - 1));
  }
  const Kind kind = chance(60) ? Kind::integer : chance(50) ? Kind::datetime : Kind::duration;
  return fmt::format("({} {} {})", expression(kind, depth - 1), one_of({"<", "<=", ">", ">="}),
                     expression(kind, depth - 1));
}

std::string Generator::about_entities(int depth) {
  const std::string left = expression(Kind::entity, depth - 1);
  switch (below(6)) {
    case 0:
      return fmt::format("({} in {})", left, expression(Kind::entity, depth - 1));
    case 1:
      return fmt::format("({} in {})", left, set(depth - 1));
    case 2:
      return fmt::format("({} in [{}, {}])", left, uid().to_string(), uid().to_string());
    case 3:
      return fmt::format("({} is {})", left, chance(90) ? uid().type : "Action");
    case 4:
      return fmt::format("({} is {} in {})", left, uid().type, chance(50) ? entity(depth - 1) : set(depth - 1));
    default:
      return fmt::format("{}.hasTag({})", left, text(depth - 1));
  }
}

std::string Generator::about_sets(int depth) {
  const std::string left = expression(Kind::set, depth - 1);
  switch (below(5)) {
    case 0:
      return fmt::format("{}.contains({})", left, expression(Kind::entity, depth - 1));
    case 1:
      return fmt::format("{}.contains({})", left, expression(any_kind(), depth - 1));
    case 2:
      return fmt::format("{}.isEmpty()", left);
    default:
      return fmt::format("{}.{}({})", left, chance(50) ? "containsAll" : "containsAny",
                         expression(Kind::set, depth - 1));
  }
}

/// What is asked for and then used.
std::string Generator::guarded(int depth) {
  const std::string of = holder(depth - 1);
  const Kind kind = any_kind();
  switch (below(6)) {
    case 0:
      return fmt::format("({} has r.n && {}.r.n {} {})", of, of, one_of({"<", ">", "=="}), integer(0));
    case 1:
      return fmt::format("({} has r && {}.r has n && {}.r.n == {})", of, of, of, integer(0));
    case 2:
      return fmt::format("({} has r.r.\"odd name\" || {} has r.r.t)", of, of);
    case 3: {
      const std::string key = text(depth - 1);
      const std::string from = entity(depth - 1);
      return fmt::format("({}.hasTag({}) && {}.getTag({}) == {})", from, key, from, key,
                         chance(70) ? integer(0) : expression(any_kind(), depth - 1));
    }
    default: {
      const std::string_view attribute = name(kind);
      const bool plain = is_identifier(attribute) && !is_reserved(attribute);
      return fmt::format("({} has {} && {}{} == {})", of, plain ? std::string(attribute) : quote(attribute), of,
                         access(attribute), expression(kind, depth - 1));
    }
  }
}

std::string Generator::method(int depth) {
  if (chance(40)) {
    return fmt::format("{}.{}({})", expression(Kind::decimal, depth - 1),
                       one_of({"lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"}),
                       expression(Kind::decimal, depth - 1));
  }
  if (chance(40))
    return fmt::format("{}.isInRange({})", expression(Kind::ip, depth - 1), expression(Kind::ip, depth - 1));
  return fmt::format("{}.{}()", expression(Kind::ip, depth - 1),
                     one_of({"isIpv4", "isIpv6", "isLoopback", "isMulticast"}));
}

// --- all of it

Generated generate(std::uint64_t seed, const GeneratorLimits& limits) {
  Generator generator(seed, limits);
  Generated all;
  for (std::size_t i = 0; i < limits.policies; ++i) {
    if (!generator.chance(12)) {
      all.policies.push_back({fmt::format("p{}", i), generator.policy()});
      continue;
    }
    GeneratedPolicy made{fmt::format("t{}", i), generator.policy(true)};
    const auto parsed = parse_policies_and_templates(made.text);
    for (auto n = generator.below(3); n > 0 && parsed.ok(); --n) {
      TemplateLink link{made.id, fmt::format("l{}.{}", i, n), {}};
      if (parsed.value[0].principal.slot) link.values.principal = generator.uid();
      if (parsed.value[0].resource.slot) link.values.resource = generator.uid();
      all.links.push_back(std::move(link));
    }
    all.templates.push_back(std::move(made));
  }
  std::map<EntityUid, Entity> entities;
  for (std::size_t i = 0; i < limits.entities; ++i) {
    Entity entity = generator.entity(generator.chance(80) ? generator.uid() : generator.action());
    entities.insert_or_assign(entity.uid, std::move(entity));
  }
  for (auto& [uid, entity] : entities) all.entities.push_back(std::move(entity));
  for (std::size_t i = 0; i < limits.requests; ++i) {
    Request request = generator.request();
    for (EntityUid* uid : {&request.principal, &request.resource})
      if (generator.chance(60)) *uid = all.entities[generator.below(all.entities.size())].uid;
    all.requests.push_back(std::move(request));
  }
  return all;
}

PolicySet compile(const Generated& generated, std::vector<std::string>* refused) {
  std::vector<std::shared_ptr<const PlannedPolicy>> planned;
  const auto read = [&](const GeneratedPolicy& policy) -> std::optional<PolicyAst> {
    auto parsed = parse_policies_and_templates(policy.text);
    if (parsed.ok() && parsed.value.size() == 1) return std::move(parsed.value[0]);
    if (refused) refused->push_back(policy.id);
    return {};
  };
  for (const GeneratedPolicy& policy : generated.policies)
    if (auto ast = read(policy)) planned.push_back(std::make_shared<PlannedPolicy>(policy.id, *std::move(ast)));
  for (const GeneratedPolicy& policy_template : generated.templates) {
    const auto ast = read(policy_template);
    for (const TemplateLink& link : generated.links) {
      if (!ast || link.template_id != policy_template.id) continue;
      auto linked = cedar::link(*ast, link.values);
      CRETO_ASSERT(linked);
      planned.push_back(std::make_shared<PlannedPolicy>(link.id, *std::move(linked)));
    }
  }
  return PolicySet(std::move(planned));
}

}  // namespace creto::authz::cedar
