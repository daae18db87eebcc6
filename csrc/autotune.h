// Which of several ways to compute an op is the fastest for a shape on a device: timed once, then remembered, from one
// process to the next too.
#pragma once

#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

namespace artkernels {

// What a timing holds for, in words of the caller's own without tabs and line breaks: people may read the file.
struct TuningKey {
  std::string op;
  std::string problem;  // all that tells the timings of two calls apart: sizes, strides, dtype, arguments
  std::string device;   // its model, not its number
};

// Thread-safe. Any number of processes may share the file, and it may be edited and deleted. Where it cannot be read or
// written, the tuner remembers for itself.
class Tuner {
 public:
  // What was measured with other `versions` of the libraries does not count. An empty path stands for no file.
  Tuner(std::filesystem::path file, std::string versions);

  // One of `candidates` ways, counted from 0: the one remembered, else the one of least `milliseconds`, which then is.
  // A way that cannot run takes infinitely many; warming up and repeating are the caller's. One thread measures at a
  // time, since they would disturb each other.
  //
  // It is `fixed_rule` when nothing is remembered while a CUDA graph is `capturing` the stream, which no measurement
  // can be part of, and under torch.use_deterministic_algorithms(True) whatever is remembered: the same call then
  // computes the same bits before and after it was tuned.
  int choose(const TuningKey& key, int candidates, int fixed_rule, bool capturing,
             const std::function<double(int)>& milliseconds);

 private:
  std::optional<int> remembered(const std::string& text, int candidates);
  void remember(const std::string& text, int candidate);

  const std::filesystem::path file_;
  const std::string versions_;
  std::recursive_mutex measuring_;                   // a candidate may be made of ops that are tuned themselves
  std::mutex mutex_;                                 // guards what follows
  std::unordered_map<std::string, int> candidates_;  // by the text of their key
};

// Tuner::choose of this process, with the versions of artkernels, torch, CUDA and cuDNN, and autotune-v1.txt in
// $ARTKERNELS_CACHE_DIR, $XDG_CACHE_HOME/artkernels or ~/.cache/artkernels. ARTKERNELS_AUTOTUNE=0, read at the first
// call, makes it `fixed_rule` always.
int autotune(const TuningKey& key, int candidates, int fixed_rule, bool capturing,
             const std::function<double(int)>& milliseconds);

}  // namespace artkernels
