// What nearly every source file includes, precompiled once per build: standard and third-party headers only, so that no
// change in the tree makes everything compile again. Sources still include what they use; the lint build goes without.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <expected>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <ranges>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

// Instantiated in common/json.cc; saves each user of JSON some seconds of code generation.
extern template class nlohmann::basic_json<>;
