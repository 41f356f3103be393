#include "source_asker.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "creto/io/no_waiting.h"

namespace creto::authz {
namespace {

Error error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

}  // namespace

SourceAsker::~SourceAsker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
}

Result<std::optional<Entity>> SourceAsker::find(const Context& ctx, const EntityUid& uid) {
  if (io::NoWaiting::forbids())
    return error(ErrorKind::unavailable, fmt::format("{} is not known here", uid.to_string()));
  const Monotonic begin = clock_.monotonic();
  const Monotonic until = std::min(ctx.deadline, begin + source_.budget());
  const auto question = std::make_shared<Question>();
  question->uid = uid;
  question->ctx.org = ctx.org;
  question->ctx.deadline = until;

  std::unique_lock lock(mutex_);
  if (hanging_ == threads_max) {
    counters_.refused.add();
    return error(ErrorKind::unavailable, fmt::format("who knows {} does not answer", uid.to_string()));
  }
  waiting_.push_back(question);
  if (idle_ < waiting_.size() && threads_.size() < threads_max) threads_.emplace_back([this] { work(); });
  wake_.notify_one();
  question->answered.wait_for(lock, until - begin, [&] { return question->answer.has_value(); });
  if (!question->answer) {
    question->given_up = true;
    question->begun ? static_cast<void>(++hanging_) : static_cast<void>(std::erase(waiting_, question));
  }
  lock.unlock();

  if (!question->answer || clock_.monotonic() - begin > source_.budget()) {
    counters_.late.add();
    return error(ErrorKind::timeout, fmt::format("{} took too long", uid.to_string()));
  }
  Answer answer = *std::move(question->answer);
  if (!answer) counters_.failures.add();
  if (answer && *answer && (*answer)->uid != uid)
    return error(ErrorKind::internal, fmt::format("another entity than {}", uid.to_string()));
  return answer;
}

SourceAsker::Answer SourceAsker::ask(const Question& question) const {
  try {
    return source_.find(question.ctx, question.uid);
  } catch (const std::exception& exception) {
    return error(ErrorKind::internal,
                 fmt::format("exception in who knows `{}`: {}", question.uid.type, exception.what()));
  }
}

void SourceAsker::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    --idle_;
    if (waiting_.empty()) return;
    const std::shared_ptr<Question> question = std::move(waiting_.front());
    waiting_.pop_front();
    question->begun = true;
    lock.unlock();
    Answer answer = ask(*question);
    lock.lock();
    if (question->given_up) {
      --hanging_;
    } else {
      question->answer = std::move(answer);
      question->answered.notify_one();
    }
  }
}

}  // namespace creto::authz
