#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include "cedar/entity_table.h"
#include "cedar/parser.h"
#include "cedar/sql_filter.h"
#include "creto/io/sql.h"
#include "creto/testing/databases.h"
#include "creto/testing/soak.h"

namespace creto::authz::cedar {
namespace {

/// Each asks for all rows, twice.
std::uint64_t seeds() { return creto::testing::number_from("CRETO_ENGINE_ROUNDS", 400) / 4; }

constexpr std::string_view mapping_text = R"({
  "schema_version": 1,
  "id": "d.id",
  "attributes": {
    "owner": {"column": "d.owner", "type": "entity", "entity": "User"},
    "owner.dept": {"column": "d.owner_dept", "type": "string"},
    "author": {"column": "d.author", "type": "entity", "entity": "User", "nullable": false},
    "group": {"column": "\"d\".\"group\"", "type": "entity", "entity": "Group"},
    "size": {"column": "d.size", "type": "long"},
    "quota": {"column": "d.quota", "type": "long", "nullable": false},
    "kind": {"column": "d.kind", "type": "string"},
    "open": {"column": "d.open", "type": "bit"},
    "public": {"column": "d.public", "type": "bool"},
    "created": {"column": "d.created", "type": "datetime"},
    "keep": {"column": "d.keep", "type": "duration"},
    "level": {"column": "d.level", "type": "decimal"},
    "meta.label": {"column": "d.label", "type": "string"},
    "meta[\"rank of it\"]": {"column": "d.rank", "type": "long", "nullable": false},
    "readers": {"table": "doc_readers", "key": "id", "value": "who", "type": "entity", "entity": "User"},
    "groups": {"table": "doc_groups", "key": "id", "value": "who", "type": "entity", "entity": "Group"},
    "labels": {"table": "doc_labels", "key": "id", "value": "label", "type": "string"},
    "secret": null
  },
  "tags": {"team": {"column": "d.team_tag", "type": "string"}, "none": null},
  "ancestors": {
    "Doc": {"Folder": {"table": "doc_folders", "descendant": "id", "ancestor": "folder"}, "Team": {"column": "d.team"},
            "Doc": null, "User": null, "Group": null},
    "User": {"Group": {"table": "user_groups", "descendant": "id", "ancestor": "who"}, "User": null},
    "Group": {"Group": {"table": "user_groups", "descendant": "id", "ancestor": "who"}}
  }
})";

constexpr std::string_view tables[] = {
    "CREATE TABLE docs (id TEXT PRIMARY KEY, owner TEXT, owner_dept TEXT, author TEXT NOT NULL, \"group\" TEXT, size "
    "BIGINT, quota BIGINT NOT NULL, kind TEXT, open BIGINT, public BOOLEAN, created BIGINT, keep BIGINT, level BIGINT, "
    "label TEXT, rank BIGINT NOT NULL, team_tag TEXT, team TEXT)",
    "CREATE TABLE doc_readers (id TEXT, who TEXT)",
    "CREATE TABLE doc_groups (id TEXT, who TEXT)",
    "CREATE TABLE doc_labels (id TEXT, label TEXT)",
    "CREATE TABLE doc_folders (id TEXT, folder TEXT)",
    "CREATE TABLE user_groups (id TEXT, who TEXT)"};

/// What the policies know beside the documents, and the documents, which are rows.
struct World {
  std::vector<Entity> others;
  std::vector<Entity> docs;
};

class Writer {
 public:
  explicit Writer(std::uint64_t seed) : random_(seed) {}

  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
  bool chance(unsigned percent) { return below(100) < percent; }
  template <class T>
  const T& one_of(const std::vector<T>& all) {
    return all[below(all.size())];
  }

  std::string user() { return fmt::format("User::\"u{}\"", below(4)); }
  std::string group() { return fmt::format("Group::\"g{}\"", below(4)); }
  std::string folder() { return fmt::format("Folder::\"f{}\"", below(4)); }
  std::string text() {
    return one_of<std::string>({"", "a", "A", "ab", "aB", "a*b", "a%b", "a_b", "axb", "a[b", "a!b", "a?b", "ü", "a]"});
  }

  World world() {
    World world;
    const auto some = [&](std::string_view type, unsigned percent) {
      std::vector<EntityUid> all;
      for (int i = 0; i < 4; ++i) {
        if (chance(percent)) all.push_back({std::string(type), fmt::format("{}{}", type == "Folder" ? "f" : "g", i)});
      }
      return all;
    };
    // Upwards alone, so that nothing is in itself.
    for (int i = 0; i < 4; ++i) {
      for (const std::string_view type : {"Group", "Folder"}) {
        Entity entity{{std::string(type), fmt::format("{}{}", type == "Folder" ? "f" : "g", i)}, {}, {}, {}};
        for (const EntityUid& parent : some(type, 30)) {
          if (parent.id > entity.uid.id) entity.parents.push_back(parent);
        }
        if (chance(80)) world.others.push_back(std::move(entity));  // else only mentioned
      }
    }
    std::map<std::string, std::optional<std::string>> depts;
    for (int i = 0; i < 4; ++i) {
      Entity user{{"User", fmt::format("u{}", i)}, {}, {}, some("Group", 30)};
      if (chance(70)) user.attributes.emplace_back("dept", *(depts[user.uid.id] = text()));
      world.others.push_back(std::move(user));
    }
    for (int i = 0; i < 40; ++i) {
      Entity doc{{"Doc", fmt::format("d{}", i)}, {}, {}, some("Folder", 25)};
      const auto add = [&](const char* name, Value value, unsigned percent = 70) {
        if (chance(percent)) doc.attributes.emplace_back(name, std::move(value));
      };
      const auto uid = [&](std::string_view type) {
        return EntityUid{std::string(type), fmt::format("{}{}", type == "User" ? "u" : "g", below(4))};
      };
      const auto set = [&](const auto& element) {
        std::vector<Value> elements;
        for (auto n = below(3); n > 0; --n) elements.emplace_back(element());
        return Value::set(std::move(elements));
      };
      const auto number = [&] { return static_cast<std::int64_t>(below(5)); };
      add("owner", uid("User"));
      add("author", uid("User"), 100);
      add("group", uid("Group"));
      add("size", number());
      add("quota", number(), 100);
      add("kind", text());
      add("open", chance(50));
      add("public", chance(50));
      add("created", DatetimeValue{number()});
      add("keep", DurationValue{number()});
      add("level", DecimalValue{number() * 5'000});
      Attributes meta{{"rank of it", number()}};
      if (chance(60)) meta.emplace_back("label", text());
      add("meta", Value::record(std::move(meta)), 100);
      add("readers", set([&] { return uid("User"); }), 100);
      add("groups", set([&] { return uid("Group"); }), 100);
      add("labels", set([&] { return text(); }), 100);
      if (chance(50)) doc.tags.emplace_back("team", text());
      if (chance(50)) doc.parents.push_back({"Team", fmt::format("t{}", below(3))});
      world.docs.push_back(std::move(doc));
    }
    return world;
  }

  std::string any_policy() {
    std::string text = chance(65) ? "permit" : "forbid";
    text += one_of<std::string>({"(principal, action, resource", "(principal in " + group() + ", action, resource"});
    switch (below(6)) {
      case 0:
        text += " is Doc";
        break;
      case 1:
        text += " in " + folder();
        break;
      case 2:
        text += fmt::format(" == Doc::\"d{}\"", below(40));
        break;
      default:
        break;
    }
    text += ")";
    for (auto n = below(3); n > 0; --n) {
      text += fmt::format(" {} {{ {} }}", chance(65) ? "when" : "unless", condition(static_cast<int>(below(4))));
    }
    return text + ";";
  }

 private:
  std::string compare() { return one_of<std::string>({"<", "<=", ">", ">=", "==", "!="}); }
  std::string entity_column() { return one_of<std::string>({"resource.owner", "resource.author"}); }
  std::string doc() { return fmt::format("Doc::\"d{}\"", below(40)); }

  std::string condition(int depth) {
    if (depth <= 0) return leaf();
    const auto sub = [&] { return condition(depth - 1); };
    switch (below(8)) {
      case 0:
      case 1:
        return fmt::format("({} && {})", sub(), sub());
      case 2:
      case 3:
        return fmt::format("({} || {} || {})", sub(), sub(), sub());
      case 4:
        return fmt::format("!({})", sub());
      case 5:
        return fmt::format("(if {} then {} else {})", sub(), sub(), sub());
      case 6:
        return fmt::format("({} && {} && {})", leaf(), sub(), sub());
      default:
        return fmt::format("(({}) {} ({}))", sub(), chance(50) ? "==" : "!=", sub());
    }
  }

  std::string leaf() {
    switch (below(44)) {
      case 0:
        return fmt::format("{} == {}", entity_column(), chance(50) ? "principal" : user());
      case 1:
        return fmt::format("{} {} {}", entity_column(), chance(50) ? "==" : "!=", entity_column());
      case 2:
        return fmt::format("resource.size {} {}", compare(), below(5));
      case 3:
        return fmt::format("{} {} resource.size", below(5), compare());
      case 4:
        return fmt::format("resource.size {} resource.quota", compare());
      case 5:
        return one_of<std::string>({"resource.size == \"x\"", "resource.size < \"x\"", "resource.kind < 3",
                                    "resource.kind != resource.size", "resource.level < 3", "resource == 3",
                                    "resource.size like \"a\"", "resource.size in Folder::\"f1\"", "resource.size"});
      case 6:
        return fmt::format("resource.kind == \"{}\"", text());
      case 7:
      case 8:
        return fmt::format("resource.{} like \"{}\"", chance(70) ? "kind" : "meta.label",
                           one_of<std::string>({"a*", "*b", "a\\*b", "*", "A*", "a%*", "a_b", "*[*", "a!*", "a?*", "",
                                                "a*b", "*]", "ü"}));
      case 9:
        return one_of<std::string>({"resource.open", "!resource.open", "resource.public", "!resource.public"});
      case 10:
        return one_of<std::string>({"resource.open == true", "resource.public == resource.open",
                                    "resource.public != false", "(resource.size < 3) == resource.open",
                                    "resource.open == 1", "[true, 3].contains(resource.public)"});
      case 11:
        return "resource has size";
      case 12:
        return one_of<std::string>({"resource has owner", "resource has author", "resource has readers",
                                    "resource has secret", "resource has secret.x", "resource.secret has x"});
      case 13:
        return one_of<std::string>({"resource has meta", "resource has meta.label", "resource.meta has label",
                                    "resource.meta has \"rank of it\""});
      case 14:
        return one_of<std::string>({"resource has owner.dept", "resource.owner has dept"});
      case 15:
        return one_of<std::string>({"resource.secret", "resource.secret == 1", "resource.getTag(\"none\") == 1"});
      case 16:
      case 17:
        return fmt::format("resource in {}", folder());
      case 18:
        return fmt::format("resource in [{}, Team::\"t{}\", {}]", folder(), below(3), folder());
      case 19:
        return fmt::format("resource in Team::\"t{}\"", below(3));
      case 20:
        return fmt::format("resource {} {}", one_of<std::string>({"==", "in", "!="}), doc());
      case 21:
      case 22:
        return fmt::format("{} in {}", entity_column(), group());
      case 23:
        return fmt::format("{} in [{}, {}]", entity_column(), group(), user());
      case 24:
        return "principal in resource.group";
      case 25:
        return fmt::format("resource.group in {}", group());
      case 26:
        return "resource.readers.contains(principal)";
      case 27:
        return fmt::format("resource.readers.{}([{}, {}])", chance(50) ? "containsAny" : "containsAll", user(), user());
      case 28:
        return fmt::format("resource.{}.isEmpty()", one_of<std::string>({"readers", "groups", "labels"}));
      case 29:
        return "principal in resource.groups";
      case 30:
        return fmt::format("resource.labels.contains(\"{}\")", text());
      case 31:
        return fmt::format("[\"{}\", 3].containsAny(resource.labels)", text());
      case 32:
        return fmt::format("[\"{}\", \"{}\", 3].contains(resource.kind)", text(), text());
      case 33:
        return fmt::format("[{}, {}].contains({})", user(), group(), entity_column());
      case 34:
        return fmt::format("resource.created {} datetime(\"1970-01-01T00:00:00.00{}Z\")", compare(), below(5));
      case 35:
        return fmt::format("resource.keep {} duration(\"{}ms\")", compare(), below(5));
      case 36:
        return fmt::format("resource.level.{}(decimal(\"{}\"))",
                           one_of<std::string>({"lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"}),
                           one_of<std::string>({"0.5", "1.0", "2.0"}));
      case 37:
        return one_of<std::string>({"resource.hasTag(\"team\")", "resource.hasTag(\"none\")"});
      case 38:
        return fmt::format("resource.getTag(\"team\") == \"{}\"", text());
      case 39:
        return one_of<std::string>({"resource.owner is User", "resource.owner is Group", "resource is Doc",
                                    "resource.size is User", "resource.owner is User in Group::\"g1\"",
                                    "resource.owner is Group in Group::\"g1\""});
      case 40:
        return fmt::format("resource.owner.dept == \"{}\"", text());
      case 41:
        return fmt::format("resource.meta[\"rank of it\"] {} {}", compare(), below(5));
      case 42:
        return fmt::format("resource.meta.label == resource.{}", chance(50) ? "kind" : "owner.dept");
      default:
        return one_of<std::string>({"principal.none == 1", "true", "false", "principal.dept == \"a\""});
    }
  }

  std::mt19937_64 random_;  // tidy(random-engine): seeded, so that a failure can be repeated
};

class SqlFilterContract : public ::testing::TestWithParam<testing::DatabaseKind> {
 protected:
  SqlFilterContract() : database_(GetParam()), db_(database_.open()) {
    run([&](sql::Tx& tx) -> Result<> {
      for (const std::string_view table : tables) CRETO_TRY(tx.exec(table));
      return {};
    });
  }

  void run(const sql::TxFunction& fn) {
    const auto done = db_->transaction(ctx_, fn);
    ASSERT_TRUE(done) << done.error().to_string();
  }

  void fill(const World& world) {
    std::map<EntityUid, const Entity*> others;
    for (const Entity& entity : world.others) others[entity.uid] = &entity;
    EntityTable table(world.others);
    for (const Entity& doc : world.docs) table.add(doc);
    run([&](sql::Tx& tx) -> Result<> {
      for (const char* name : {"docs", "doc_readers", "doc_groups", "doc_labels", "doc_folders", "user_groups"}) {
        CRETO_TRY(tx.exec(fmt::format("DELETE FROM {}", name)));
      }
      for (const Entity& doc : world.docs) {
        const Value all = Value::record(doc.attributes);
        const auto id = [&](const char* name) -> sql::Value {
          const Value* value = all.attribute(name);
          return value ? sql::Value(value->as<EntityUid>()->id) : sql::Value();
        };
        const auto text = [](const Value* value) {
          return value ? sql::Value(*value->as<std::string>()) : sql::Value();
        };
        const auto number = [&](const char* name) -> sql::Value {
          const Value* value = all.attribute(name);
          if (!value) return {};
          if (const auto* truth = value->as<bool>()) return *truth ? 1 : 0;
          if (const auto* created = value->as<DatetimeValue>()) return created->unix_ms;
          if (const auto* keep = value->as<DurationValue>()) return keep->ms;
          if (const auto* level = value->as<DecimalValue>()) return level->ten_thousandths;
          return *value->as<std::int64_t>();
        };
        const Value* owner = all.attribute("owner");
        const Entity* user = owner ? others.at(*owner->as<EntityUid>()) : nullptr;
        const Value user_attributes = Value::record(user ? user->attributes : Attributes());
        const Value& meta = *all.attribute("meta");
        const auto team = std::find_if(doc.parents.begin(), doc.parents.end(),
                                       [](const EntityUid& parent) { return parent.type == "Team"; });
        CRETO_TRY(tx.exec(
            "INSERT INTO docs VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10 = 1, $11, $12, $13, $14, $15, $16, $17)",
            {doc.uid.id, id("owner"), text(user_attributes.attribute("dept")), id("author"), id("group"),
             number("size"), number("quota"), text(all.attribute("kind")), number("open"), number("public"),
             number("created"), number("keep"), number("level"), text(meta.attribute("label")),
             *meta.attribute("rank of it")->as<std::int64_t>(), text(Value::record(doc.tags).attribute("team")),
             team == doc.parents.end() ? sql::Value() : sql::Value(team->id)}));
        for (const char* name : {"readers", "groups", "labels"}) {
          for (const Value& element : *all.attribute(name)->as_set()) {
            const auto* uid = element.as<EntityUid>();
            CRETO_TRY(tx.exec(fmt::format("INSERT INTO doc_{} VALUES ($1, $2)", name),
                              {doc.uid.id, uid ? uid->id : *element.as<std::string>()}));
          }
        }
        CRETO_TRY(insert_above(tx, table, doc.uid, "Folder", "doc_folders"));
      }
      for (const char* letter : {"u", "g"}) {
        for (int i = 0; i < 4; ++i) {
          const EntityUid uid{*letter == 'u' ? "User" : "Group", fmt::format("{}{}", letter, i)};
          CRETO_TRY(insert_above(tx, table, uid, "Group", "user_groups"));
        }
      }
      return {};
    });
  }

  static Result<> insert_above(sql::Tx& tx, EntityTable& entities, const EntityUid& uid, std::string_view type,
                               std::string_view table) {
    const auto* all = CRETO_TRY(entities.ancestors(uid));
    for (const EntityUid& above : *all) {
      if (above.type != type) continue;
      CRETO_TRY(tx.exec(fmt::format("INSERT INTO {} VALUES ($1, $2)", table), {uid.id, above.id}));
    }
    return {};
  }

  std::set<std::string> rows(const SqlFilter& filter) {
    std::vector<sql::Value> parameters;
    for (const SqlParameter& parameter : filter.parameters) {
      parameters.push_back(std::visit([](const auto& value) { return sql::Value(value); }, parameter));
    }
    const auto found = sql::read(*db_, ctx_, [&](sql::Tx& tx) -> Result<sql::Rows> {
      return tx.query("SELECT d.id FROM docs AS d WHERE d.id <> 'none' AND " + filter.where, parameters);
    });
    EXPECT_TRUE(found) << found.error().to_string() << "\n" << filter.where;
    std::set<std::string> ids;
    if (found) {
      for (const sql::Row row : *found) ids.insert(row.text(0));
    }
    return ids;
  }

  SqlDialect dialect() const {
    return db_->dialect() == sql::Dialect::sqlite ? SqlDialect::sqlite : SqlDialect::postgres;
  }

  const Context ctx_ = Context::of_service(Identity::service("test").value());
  testing::TestDatabase database_;
  std::unique_ptr<sql::Database> db_;
};

TEST_P(SqlFilterContract, FindsExactlyTheRowsThatTheInterpreterAllows) {
  const SqlMapping mapping = parse_sql_mapping(mapping_text).value();
  std::size_t undecided = 0, found = 0, left_out = 0;
  for (std::uint64_t seed = 1; seed <= seeds(); ++seed) {
    Writer writer(seed);
    World world;
    if (seed % 10 == 1) fill(world = Writer(seed).world());
    if (seed % 10 != 1) world = Writer(seed - (seed - 1) % 10).world();
    std::vector<std::shared_ptr<const PlannedPolicy>> policies;
    std::string texts;
    for (auto n = 1 + writer.below(5); n > 0; --n) {
      const std::string text = writer.any_policy();
      auto parsed = parse_policies(text);
      ASSERT_TRUE(parsed) << text << parsed.error().message();
      texts += text + "\n";
      policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("p{}", n), std::move((*parsed)[0])));
    }
    const PolicySet set(std::move(policies));
    const EntityUid principal{"User", fmt::format("u{}", writer.below(4))};
    const EntityUid action{"Action", "read"};
    EntityTable others(world.others);
    const auto partial = evaluate_partially(set, {{principal}, {action}, {std::nullopt, "Doc"}}, others);
    ASSERT_TRUE(partial) << partial.error().message();

    EntityTable whole(world.others);
    for (const Entity& doc : world.docs) whole.add(doc);
    for (const ErringForbid erring : {ErringForbid::skipped, ErringForbid::denies}) {
      const auto filter = to_sql(*partial, mapping, others, {.dialect = dialect(), .erring = erring});
      ASSERT_TRUE(filter) << filter.error().message() << "\n" << texts;
      std::set<std::string> wanted;
      for (const Entity& doc : world.docs) {
        const Evaluation evaluation = set.evaluate({principal, action, doc.uid, Value::record({})}, whole);
        const bool forbid_erred =
            std::any_of(evaluation.errors.begin(), evaluation.errors.end(),
                        [](const auto& failed) { return failed.first->ast.effect == Effect::forbid; });
        if (evaluation.allows() && (erring == ErringForbid::skipped || !forbid_erred)) wanted.insert(doc.uid.id);
      }
      ASSERT_EQ(rows(*filter), wanted) << "seed " << seed << (erring == ErringForbid::denies ? ", strict" : "") << "\n"
                                       << texts << filter->where;
      if (partial->decision(erring) != PartialDecision::undecided) continue;
      ++undecided;
      found += wanted.size();
      left_out += world.docs.size() - wanted.size();
    }
  }
  EXPECT_GT(undecided, seeds() / 2);
  EXPECT_GT(found, seeds());
  EXPECT_GT(left_out, seeds());
}

INSTANTIATE_TEST_SUITE_P(, SqlFilterContract, both_databases(), database_name);

/// The condition, then its parameters.
std::string filter_of(const std::string& text, std::string_view mapping, SqlOptions options = {}) {
  std::vector<std::shared_ptr<const PlannedPolicy>> policies;
  auto parsed = parse_policies(text).value();
  for (PolicyAst& ast : parsed) {
    policies.push_back(std::make_shared<PlannedPolicy>(fmt::format("p{}", policies.size()), std::move(ast)));
  }
  const PolicySet set(std::move(policies));
  EntityTable entities(std::vector<Entity>{{{"User", "alice"}, {}, {}, {{"Group", "staff"}}}});
  PartialRequest request{{EntityUid{"User", "alice"}}, {EntityUid{"Action", "read"}}, {std::nullopt, "Doc"}};
  request.unknown_context = {"later"};
  const auto partial = evaluate_partially(set, request, entities);
  const auto filter = to_sql(*partial, parse_sql_mapping(mapping).value(), entities, options);
  if (!filter) return filter.error().message();
  std::string result = filter->where;
  for (const SqlParameter& parameter : filter->parameters) {
    const auto* number = std::get_if<std::int64_t>(&parameter);
    result += number ? fmt::format(" | {}", *number) : fmt::format(" | {}", std::get<std::string>(parameter));
  }
  return result;
}

std::string permit_when(const std::string& condition, SqlOptions options = {}) {
  return filter_of("permit(principal, action, resource) when { " + condition + " };", mapping_text, options);
}

TEST(SqlFilter, BindsEveryValueAndReadsAsAPersonWouldWriteIt) {
  EXPECT_EQ(permit_when("resource.author == principal"), "d.author = $1 | alice");
  EXPECT_EQ(permit_when("resource.author == principal || resource.public"), "(d.author = $1 OR d.public) | alice");
  EXPECT_EQ(permit_when("resource has size && resource.size < 10"), "d.size IS NOT NULL AND d.size < $1 | 10");
  EXPECT_EQ(permit_when("resource in Folder::\"x\""),
            "d.id IN (SELECT t.id FROM doc_folders AS t WHERE t.folder = $1) | x");
  EXPECT_EQ(permit_when("principal in resource.group"), "\"d\".\"group\" = $1 | staff");
  EXPECT_EQ(permit_when("resource.kind == \"' OR 1=1 --\""), "d.kind = $1 | ' OR 1=1 --");
  EXPECT_EQ(
      permit_when("resource.kind == \"a\" && resource.size > 1 && resource.meta.label == \"a\"", {.numbered = false}),
      "d.kind = ? AND d.size > ? AND d.label = ? | a | 1 | a");
  EXPECT_EQ(permit_when("resource.kind == \"a\" && resource.meta.label == \"a\"", {.first_parameter = 4}),
            "d.kind = $4 AND d.label = $4 | a");
  EXPECT_EQ(permit_when("principal in Group::\"staff\""), "TRUE");
  EXPECT_EQ(permit_when("principal in Group::\"none\""), "FALSE");
}

TEST(SqlFilter, AbsentIsAnErrorAndNotFalse) {
  EXPECT_EQ(permit_when("!(resource.size == 1)"), "d.size <> $1 | 1");
  EXPECT_EQ(permit_when("resource.size == 1 || resource.author == principal"),
            "(d.size = $1 OR d.size IS NOT NULL AND d.author = $2) | 1 | alice");
  const std::string forbid =
      "permit(principal, action, resource); forbid(principal, action, resource) when { resource.size > 9 };";
  EXPECT_EQ(filter_of(forbid, mapping_text), "(d.size > $1) IS NOT TRUE | 9");
  EXPECT_EQ(filter_of(forbid, mapping_text, {.erring = ErringForbid::denies}), "d.size <= $1 | 9");
}

TEST(SqlFilter, NamesPolicyAndExpressionOfWhatItCannotSay) {
  const auto why = [](const std::string& condition) {
    std::string text = permit_when(condition);
    const std::string begin = "policy `p0`: ";
    return text.starts_with(begin) ? text.substr(begin.size()) : text;
  };
  EXPECT_EQ(why("resource.color == 1"), "`resource.color` cannot be said in SQL: the mapping has no column for it");
  EXPECT_EQ(why("resource.size + 1 < 3"),
            "`resource.size + 1` cannot be said in SQL: a column can be compared, but not computed with");
  EXPECT_EQ(why("context.later == resource.size"),
            "`context.later` cannot be said in SQL: it does not depend on the resource alone");
  EXPECT_EQ(why("resource in Planet::\"x\""),
            "`resource in Planet::\"x\"` cannot be said in SQL: the mapping does not say which `Planet` a `Doc` is in");
  EXPECT_EQ(why("Doc::\"a\".size == resource.size"),
            "`Doc::\"a\".size` cannot be said in SQL: it asks for an entity that is not known");
  EXPECT_EQ(why("resource.kind == \"\\0\""), "`\"\\0\"` cannot be said in SQL: a text with a zero byte is none in SQL");
  EXPECT_EQ(why("resource.readers == [principal]"),
            "`resource.readers` cannot be said in SQL: a set can be asked only for what it contains");
  EXPECT_EQ(why("resource.created.offset(duration(\"1h\")) < datetime(\"2026-01-01\")"),
            "`resource.created.offset(duration(\"3600000ms\"))` cannot be said in SQL: a column can be compared, but "
            "not computed with");
}

TEST(SqlFilter, RefusesWhatGrowsTooLarge) {
  std::string nested = "resource.size == 1";
  for (int i = 0; i < 40; ++i) nested = fmt::format("(({} && resource.open) || resource.kind == \"a\")", nested);
  EXPECT_EQ(permit_when(nested), "the condition is longer than 262144 bytes in SQL");
  std::string many = "resource.size == 0";
  for (int i = 1; i < 1'200; ++i) many += fmt::format(" || resource.quota == {}", i);
  EXPECT_EQ(permit_when(many), "the condition has more than 999 parameters in SQL");
}

TEST(SqlFilter, TakesOnlyNamesForNames) {
  const auto why = [](std::string json) {
    json.insert(1, json == "{}" ? R"("schema_version": 1)" : R"("schema_version": 1, )");
    const auto mapping = parse_sql_mapping(json);
    return mapping ? "ok" : mapping.error().message();
  };
  EXPECT_EQ(why(R"({"id": "id"})"), "ok");
  EXPECT_EQ(why(R"({"id": "\"my docs\".d.\"the id\""})"), "ok");
  EXPECT_EQ(why(R"({"id": "id; DROP TABLE docs"})"), "id: `id; DROP TABLE docs` is no name of a column or table");
  EXPECT_EQ(why(R"({"id": "\"a\"\"b\""})"), "id: `\"a\"\"b\"` is no name of a column or table");
  EXPECT_EQ(why(R"_({"id": "lower(id)"})_"), "id: `lower(id)` is no name of a column or table");
  EXPECT_EQ(why("{}"), "columns.id: is required");
  EXPECT_EQ(parse_sql_mapping(R"({"schema_version": 2, "id": "id"})").error().message(),
            "columns.schema_version: must be 1");
  EXPECT_EQ(why(R"({"id": "id", "attributes": {"a b": null}})"), "attributes: `a b` is no path such as `owner.name`");
  EXPECT_EQ(why(R"({"id": "id", "attributes": {"a": {"column": "a", "type": "entity"}}})"),
            "attributes.a: an entity needs its entity type");
  EXPECT_EQ(why(R"({"id": "id", "attributes": {"a": {"column": "a", "type": "text"}}})"),
            "attributes.a.type: must be bool, bit, long, string, entity, datetime, duration or decimal");
  EXPECT_EQ(why(R"({"id": "id", "attributes": {"a": {"column": "a", "typ": "long", "type": "long"}}})"),
            "attributes.a.typ: unknown field");
  EXPECT_EQ(why(R"({"id": "id", "attributes": {"a": null, "[\"a\"]": null}})"), "attributes.a: stands twice");
  EXPECT_EQ(why(R"({"id": "id", "ancestors": {"D": {"F": {"table": "t", "descendant": "t.d", "ancestor": "a"}}}})"),
            "ancestors.D.F.descendant: `t.d` is no name of a column, without its table");
}

}  // namespace
}  // namespace creto::authz::cedar
