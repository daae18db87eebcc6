// Threads that take blocks from one pool, write to them, hand them to each other and give them back, while one of them
// changes the limit, releases everything and forks. Built by test_pooled_allocator.py, alone and under sanitizers.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "block_pool.h"

using artkernels::BlockPool;

static BlockPool pool;
static std::atomic<size_t*> exchange[16];

static void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(1);
}

// A block holds its own address: a second owner would have overwritten it, or would find it overwritten.
static void give_back(size_t* block) {
  if (block == nullptr) return;
  require(block[0] == reinterpret_cast<size_t>(block), "a block had two owners");
  block[0] = 0;
  require(pool.owns(block), "a block in use is not known");
  pool.give_back(block);
}

static void use(unsigned seed, int rounds) {
  std::mt19937 random(seed);
  for (int round = 0; round < rounds; ++round) {
    auto* block = static_cast<size_t*>(pool.take(BlockPool::kSmallest + (random() % 40 << 16)));
    require(block != nullptr, "no memory");
    block[0] = reinterpret_cast<size_t>(block);
    give_back(exchange[random() % 16].exchange(block));
    const auto s = pool.statistics();
    require(s.bytes_in_use + s.bytes_kept <= s.peak_bytes, "more bytes than at the peak");
    require(s.bytes_kept <= size_t{64} << 20, "more bytes kept than allowed");
  }
}

int main(int, char** arguments) {
  const int rounds = std::atoi(arguments[1]), forks = std::atoi(arguments[2]);
  pthread_atfork([] { pool.before_fork(); }, [] { pool.after_fork_in_parent(); }, [] { pool.after_fork_in_child(); });
  pool.set_max_bytes(size_t{64} << 20);
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) threads.emplace_back(use, seed, rounds);
  for (int i = 0; i < rounds / 20; ++i) {
    pool.set_max_bytes(size_t{1} << (20 + i % 7));
    pool.release();
  }
  for (int i = 0; i < forks; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // ends a child that waits for a thread it does not have
      require(pool.statistics().bytes_kept == 0, "a child keeps the pages of its parent");
      pool.give_back(pool.take(BlockPool::kSmallest));
      std::_Exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    require(status == 0, "a child did not end well");
  }
  for (auto& thread : threads) thread.join();
  for (auto& block : exchange) give_back(block);
  pool.release();
  const auto s = pool.statistics();
  require(s.bytes_in_use == 0 && s.bytes_kept == 0 && s.misses == s.released, "blocks were lost");
  require(s.hits > 0 || rounds == 0, "nothing was reused");
}
