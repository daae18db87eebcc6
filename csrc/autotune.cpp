#include "autotune.h"

#include <ATen/Context.h>
#include <fcntl.h>
#include <sys/file.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <vector>

namespace artkernels {
namespace {

// ---- the file -------------------------------------------------------------------------------------------------------

constexpr std::string_view kHeader = "artkernels autotune 1";
constexpr size_t kMaxEntries = 4096;            // in the file: the newest
constexpr size_t kMaxBytes = size_t{16} << 20;  // a larger file is none of ours

struct Entry {
  std::string key;  // op, problem, device and versions, separated by tabs
  int candidate;
};

// A line is an entry's key, a tab and the candidate; nothing for any other line.
std::optional<Entry> parse(std::string_view line) {
  const size_t tab = line.rfind('\t');
  if (tab == line.npos || std::ranges::count(line, '\t') != 4) return {};
  Entry entry = {std::string(line.substr(0, tab)), 0};
  const char* const end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data() + tab + 1, end, entry.candidate);
  if (error != std::errc() || stop != end) return {};
  return entry;
}

// Oldest first; none when the file is missing or not in this format.
std::vector<Entry> read_entries(const std::filesystem::path& path) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);  // an error too for all but ordinary files
  if (error || bytes > kMaxBytes) return {};
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line != kHeader) return {};
  std::vector<Entry> entries;
  while (std::getline(file, line) && !file.eof()) {  // at its end: a line that was cut off
    if (auto entry = parse(line)) entries.push_back(std::move(*entry));
  }
  return entries;
}

// Whether all of the text is on the disk.
bool write_file(const std::filesystem::path& path, std::string_view text) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return false;
  while (!text.empty()) {
    const ssize_t written = write(file, text.data(), text.size());
    if (written < 0 && errno != EINTR) break;
    if (written > 0) text.remove_prefix(written);
  }
  const bool synced = fsync(file) == 0;
  return close(file) == 0 && synced && text.empty();
}

// Held by one process at a time, until its end at the latest.
class FileLock {
 public:
  explicit FileLock(const std::filesystem::path& path) : file_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    while (file_ >= 0 && !(held_ = flock(file_, LOCK_EX) == 0) && errno == EINTR) {}
  }
  ~FileLock() {
    if (file_ < 0) return;
    flock(file_, LOCK_UN);  // closing would leave it to a child forked meanwhile
    close(file_);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  bool held() const { return held_; }

 private:
  int file_;
  bool held_ = false;
};

// Adds the entry to those that other processes have written meanwhile. Failing to is no error.
void add_entry(const std::filesystem::path& path, const Entry& entry) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  const FileLock lock(std::filesystem::path(path).replace_extension("lock"));
  if (!lock.held()) return;
  std::vector<Entry> entries = read_entries(path);
  std::erase_if(entries, [&](const Entry& old) { return old.key == entry.key; });
  entries.push_back(entry);
  std::ostringstream text;
  text << kHeader << '\n';
  for (size_t i = entries.size() - std::min(entries.size(), kMaxEntries); i < entries.size(); ++i) {
    text << entries[i].key << '\t' << entries[i].candidate << '\n';
  }
  const auto partial = std::filesystem::path(path).replace_extension("partial");
  if (write_file(partial, text.view())) {
    std::filesystem::rename(partial, path, error);
  } else {
    std::filesystem::remove(partial, error);
  }
}

// ---- this process ---------------------------------------------------------------------------------------------------

// Empty when there is nowhere to keep it.
std::filesystem::path default_file() {
  const std::pair<const char*, const char*> places[] = {
      {"ARTKERNELS_CACHE_DIR", ""}, {"XDG_CACHE_HOME", "artkernels"}, {"HOME", ".cache/artkernels"}};
  for (const auto& [variable, below] : places) {
    if (const char* folder = std::getenv(variable); folder != nullptr && *folder != '\0') {
      return std::filesystem::path(folder) / below / "autotune-v1.txt";
    }
  }
  return {};
}

std::string library_versions() {
  std::ostringstream versions;
  versions << "artkernels " << ARTKERNELS_VERSION << ", torch " << TORCH_VERSION;
  if (const auto& cuda = at::detail::getCUDAHooks(); cuda.hasCUDA()) {
    versions << ", CUDA " << cuda.versionCUDART();
    if (cuda.hasCuDNN()) versions << ", cuDNN " << cuda.versionRuntimeCuDNN();
  }
  return versions.str();
}

bool turned_off() {
  const char* const setting = std::getenv("ARTKERNELS_AUTOTUNE");
  return setting != nullptr && std::string_view(setting) == "0";
}

}  // namespace

Tuner::Tuner(std::filesystem::path file, std::string versions)
    : file_(std::move(file)), versions_(std::move(versions)) {
  for (auto& [key, candidate] : read_entries(file_)) candidates_[std::move(key)] = candidate;
}

// Nothing also where the file names a candidate that there is not.
std::optional<int> Tuner::remembered(const std::string& text, int candidates) {
  const std::lock_guard lock(mutex_);
  const auto found = candidates_.find(text);
  if (found == candidates_.end() || found->second < 0 || found->second >= candidates) return {};
  return found->second;
}

void Tuner::remember(const std::string& text, int candidate) {
  {
    const std::lock_guard lock(mutex_);
    candidates_[text] = candidate;
  }
  if (!file_.empty()) add_entry(file_, {text, candidate});
}

int Tuner::choose(const TuningKey& key, int candidates, int fixed_rule, bool capturing,
                  const std::function<double(int)>& milliseconds) {
  if (at::globalContext().deterministicAlgorithms()) return fixed_rule;
  const std::string text = key.op + '\t' + key.problem + '\t' + key.device + '\t' + versions_;
  if (const auto candidate = remembered(text, candidates)) return *candidate;
  if (capturing) return fixed_rule;

  const std::lock_guard lock(measuring_);
  if (const auto candidate = remembered(text, candidates)) return *candidate;  // measured while this thread waited
  constexpr double kNever = std::numeric_limits<double>::infinity();
  double least = kNever;
  int fastest = fixed_rule;
  for (int candidate = 0; candidate < candidates; ++candidate) {
    const double time = milliseconds(candidate);
    if (time < least) least = time, fastest = candidate;
  }
  if (least < kNever) remember(text, fastest);
  return fastest;
}

int autotune(const TuningKey& key, int candidates, int fixed_rule, bool capturing,
             const std::function<double(int)>& milliseconds) {
  static const bool off = turned_off();
  if (off) return fixed_rule;
  // Never destroyed: other threads may still be at work when the destructors of static objects run.
  static Tuner& tuner = *new Tuner(default_file(), library_versions());
  return tuner.choose(key, candidates, fixed_rule, capturing, milliseconds);
}

}  // namespace artkernels
