// Scheduling: lanes into groups, groups of a warp, warps of a block, blocks of a launch.
//
// Lanes that diverge become groups with their own program counters. The group with the deepest call stack and
// then the lowest program counter runs; groups that meet merge. A warp-synchronous instruction waits until every
// live lane that its mask names has arrived.
#include <chrono>
#include <deque>
#include <map>
#include <numeric>
#include <sstream>
#include <thread>

#include "machine.h"

namespace cudaemu {

namespace {

constexpr u64 kDeterministicSlice = 100'000;  // warp instructions a warp may run before the next one's turn
constexpr u64 kBlockQuantum = 50'000;         // ... a block, before it is asked whether it may be waiting for another
constexpr u64 kPollQuantum = 1'000;           // ... one that was found waiting
constexpr u32 kGroupSlice = 8192;             // ... a divergent group (spin waits between lanes)
constexpr size_t kMaxResidentBlocks = 512;

u64 mix(u64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

u32 guarded(const Warp& w, const Instr& in, u32 mask) {
  return in.guard == kNone ? mask : mask & (*reinterpret_cast<const u32*>(w.regs + in.guard) ^ in.guard_xor);
}

std::string hex(u32 v) {
  char text[16];
  snprintf(text, sizeof text, "0x%08x", v);
  return text;
}

}  // namespace

// ---- messages -------------------------------------------------------------------------------------------------

std::string describe_instruction(const Launch& launch, const Instr& in) {
  std::ostringstream o;
  const Statement& s = *in.source;
  o << "'" << s.text() << "' at PTX line " << s.location.ptx_line;
  const auto& files = launch.program->module->files;
  if (s.location.file > 0 && size_t(s.location.file) < files.size())
    o << " (" << files[size_t(s.location.file)] << ":" << s.location.line << ")";
  if (in.function != launch.program->kernel) o << " in function " << in.function->name;
  return o.str();
}

std::string describe_thread(const Block& b, u32 t) {
  const u32* n = b.launch.block;
  std::ostringstream o;
  o << "block (" << b.ctaid[0] << "," << b.ctaid[1] << "," << b.ctaid[2] << ") thread (" << t % n[0] << ","
    << t / n[0] % n[1] << "," << t / n[0] / n[1] << ")";
  return o.str();
}

void raise_error(const Warp& w, u32 lane, const std::string& kind, const std::string& message) {
  const Launch& launch = w.block->launch;
  throw EmulationError(kind, kind + ": " + message + "\n  kernel " + launch.kernel_name + ", " +
                                 describe_thread(*w.block, w.lane_thread(lane)) + "\n  " +
                                 describe_instruction(launch, launch.program->code[w.pc]));
}

// ---- Block ------------------------------------------------------------------------------------------------------

Worker::Worker(Launch& l)
    : launch(l), warp_executions(l.program->code.size()), lane_executions(l.program->code.size()) {}

Block::Block(Launch& l, u64 i) : launch(l), index(i), random_state_(mix(l.options.seed * 1000003 + i)) {
  ctaid[0] = u32(i % l.grid[0]);
  ctaid[1] = u32(i / l.grid[0] % l.grid[1]);
  ctaid[2] = u32(i / l.grid[0] / l.grid[1]);
  clock.id = u32(i + 1);
  const Program& p = *l.program;
  const u32 threads = l.threads_per_block(), count = (threads + 31) / 32;
  shared_size = p.shared_bytes + l.dynamic_shared;
  shared_storage.assign(shared_size + 1024, 0xcd);
  shared = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(shared_storage.data()) + 1023) / 1024 * 1024);
  shared_shadow.reset(shared_size, threads, l.options.checks);
  registers_.resize(size_t(p.register_bytes) * count + 64);
  local_.assign(size_t(p.local_bytes) * count * 32 + 64, 0xcd);
  u8* registers = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(registers_.data()) + 63) / 64 * 64);
  u8* local = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(local_.data()) + 63) / 64 * 64);
  warps.resize(count);
  for (u32 w = 0; w < count; ++w) {
    Warp& warp = warps[w];
    warp.block = this;
    warp.id = w;
    warp.regs = registers + size_t(w) * p.register_bytes;
    warp.local = local + size_t(w) * 32 * p.local_bytes;
    const u32 lanes = std::min(threads - w * 32, 32u);
    warp.threads = warp.live = lanes == 32 ? kFullMask : (1u << lanes) - 1;
    warp.groups.resize(1);
    warp.groups[0].mask = warp.live;
    initialise(warp);
  }
}

u64 Block::random() { return random_state_ = mix(random_state_); }

void Block::initialise(Warp& w) {
  const Program& p = *launch.program;
  auto fill = [&](u32 offset, u8 size, auto value_of_lane) {
    for (u32 i = 0; i < 32; ++i) {
      u64 v = value_of_lane(i);
      memcpy(w.regs + offset + i * size, &v, std::min<size_t>(size, 8));
      if (size == 16) memset(w.regs + offset + i * 16 + 8, 0, 8);
    }
  };
  for (const Program::Constant& c : p.constants) {
    if (c.size == 1) *reinterpret_cast<u32*>(w.regs + c.offset) = u32(c.bits);
    else fill(c.offset, c.size, [&](u32) { return c.bits; });
  }
  const u32* n = launch.block;
  for (const Program::SpecialSlot& s : p.specials)
    fill(s.offset, s.size, [&](u32 lane) -> u64 {
      const u32 t = w.lane_thread(lane);
      switch (s.which) {
        case Special::TidX: return t % n[0];
        case Special::TidY: return t / n[0] % n[1];
        case Special::TidZ: return t / n[0] / n[1];
        case Special::NtidX: case Special::NtidY: case Special::NtidZ: return n[int(s.which) - int(Special::NtidX)];
        case Special::CtaidX: case Special::CtaidY: case Special::CtaidZ:
          return ctaid[int(s.which) - int(Special::CtaidX)];
        case Special::NctaidX: case Special::NctaidY: case Special::NctaidZ:
          return launch.grid[int(s.which) - int(Special::NctaidX)];
        case Special::LaneId: return lane;
        case Special::WarpId: return w.id;
        case Special::NwarpId: return warps.size();
        case Special::SmId: return index % u64(launch.profile->sms);
        case Special::NsmId: return u64(launch.profile->sms);
        case Special::GridId: return launch.sequence;
        case Special::LaneMaskEq: return 1u << lane;
        case Special::LaneMaskLe: return u32((2ull << lane) - 1);
        case Special::LaneMaskLt: return (1u << lane) - 1;
        case Special::LaneMaskGe: return ~((1u << lane) - 1);
        case Special::LaneMaskGt: return ~u32((2ull << lane) - 1);
        case Special::DynamicSharedSize: return launch.dynamic_shared;
        case Special::TotalSharedSize: return shared_size;
        case Special::Zero: return 0;
        case Special::One: return 1;
        case Special::GridWorkspaceHigh: return launch.cooperative ? u64(reinterpret_cast<uintptr_t>(launch.grid_workspace)) >> 32 : 0;
        case Special::GridWorkspaceLow: return launch.cooperative ? u32(reinterpret_cast<uintptr_t>(launch.grid_workspace)) : 0;
      }
      return 0;
    });
}

bool Block::run(u64 budget) {
  u64 used = 0;
  while (used < budget) {
    bool progress = false, alive = false;
    const size_t start = launch.options.seed ? size_t(random() % warps.size()) : 0;
    for (size_t k = 0; k < warps.size(); ++k) {
      Warp& w = warps[(start + k) % warps.size()];
      if (!w.live) continue;
      progress |= run_warp(w, launch.options.seed ? 1 + random() % 200 : std::min(kDeterministicSlice, budget), used);
      alive |= w.live != 0;
    }
    complete_barriers();
    if (!alive) return true;
    if (launch.stop.load(std::memory_order_relaxed)) return true;
    if (!progress) {
      bool waiting_only = true;  // a barrier that has just completed is progress too
      for (Warp& w : warps)
        for (Group& g : w.groups) waiting_only &= g.state != Group::State::Ready;
      if (waiting_only) diagnose_deadlock();
    }
  }
  return false;
}

size_t Block::select(Warp& w) {
  auto better = [](const Group& a, const Group& b) {
    if (a.return_stack.size() != b.return_stack.size()) return a.return_stack.size() > b.return_stack.size();
    return a.pc < b.pc;
  };
  size_t best = kNone;
  for (size_t i = 0; i < w.groups.size(); ++i)
    if (w.groups[i].state == Group::State::Ready && (best == kNone || better(w.groups[i], w.groups[best]))) best = i;
  if (best == kNone) return best;
  for (size_t i = w.groups.size(); i-- > 0;) {  // fold in whoever stands at the same place
    Group& g = w.groups[i];
    Group& b = w.groups[best];
    if (i == best || g.pc != b.pc || g.state == Group::State::AtBarrier || g.return_stack != b.return_stack) continue;
    b.mask |= g.mask;
    w.groups.erase(w.groups.begin() + std::ptrdiff_t(i));
    if (i < best) --best;
  }
  return best;
}

// The lanes of mask whose own membermask is fully present.
u32 Block::synchronised(const Warp& w, const Instr& in, u32 mask) const {
  const u32* members = w.reg<u32>(in, in.operands - 1);
  u32 ready = 0;
  for (u32 rest = mask; rest;) {
    const u32 wanted = members[std::countr_zero(rest)];
    u32 same = 0;
    for (u32 m = rest; m; m &= m - 1)
      if (members[std::countr_zero(m)] == wanted) same |= m & (0 - m);
    if (u32 outsiders = same & ~wanted)
      raise_error(w, u32(std::countr_zero(outsiders)), "sync-mask",
                  "the thread executes a warp-synchronous instruction whose mask " + hex(wanted) + " does not name it");
    if ((wanted & w.live & ~same) == 0) ready |= same;
    rest &= ~same;
  }
  return ready;
}

// Executes a warp-synchronous instruction once per distinct membermask.
void Block::execute_sync(Warp& w, const Instr& in, u32 mask) {
  const u32* members = w.reg<u32>(in, in.operands - 1);
  while (mask) {
    const u32 wanted = members[std::countr_zero(mask)];
    u32 same = 0;
    for (u32 m = mask; m; m &= m - 1)
      if (members[std::countr_zero(m)] == wanted) same |= m & (0 - m);
    in.exec(w, in, same);
    mask &= ~same;
  }
}

bool Block::run_warp(Warp& w, u64 budget, u64& used) {
  const Instr* code = launch.program->code.data();
  u64* warp_executions = worker->warp_executions.data();
  u64* lane_executions = worker->lane_executions.data();
  bool progress = false;
  while (budget && w.live) {
    size_t current = select(w);
    if (current == kNone) {
      if (unblock(w)) { progress = true; continue; }
      break;
    }
    progress = true;
    u32 pc = w.groups[current].pc, mask = w.groups[current].mask;
    const bool alone = w.groups.size() == 1;
    u32 limit = kNone, slice = kNone;
    if (!alone) {
      slice = kGroupSlice;
      for (const Group& g : w.groups)
        if (g.pc > pc && g.state != Group::State::AtBarrier) limit = std::min(limit, g.pc);
    }
    auto split = [&](u32 lanes, u32 at) {  // lanes leave the current group
      Group g;
      g.pc = at;
      g.mask = lanes;
      g.return_stack = w.groups[current].return_stack;
      w.groups.push_back(std::move(g));
      mask &= ~lanes;
    };
    bool stay = true, gone = false;
    while (stay) {
      const Instr& in = code[pc];
      const u32 m = guarded(w, in, mask);
      w.pc = pc;
      ++warp_executions[pc];
      lane_executions[pc] += u32(std::popcount(m));
      switch (in.flow) {
        case Flow::Normal:
          if (m) in.exec(w, in, m);
          ++pc;
          break;
        case Flow::Branch:
          if (m == mask) {
            pc = in.target;
            stay = alone;
          } else if (m == 0) {
            ++pc;
          } else {
            split(m, in.target);
            ++pc;
            stay = false;
          }
          break;
        case Flow::BranchIndexed: {
          const auto& table = launch.program->branch_tables[in.target];
          const u32* choice = w.reg<u32>(in, 0);
          for (u32 rest = m; rest; rest &= rest - 1) {
            const u32 lane = u32(std::countr_zero(rest));
            if (choice[lane] >= table.size()) raise_error(w, lane, "branch-table", "brx.idx index out of range");
          }
          for (u32 rest = m; rest;) {
            const u32 target = table[choice[std::countr_zero(rest)]];
            u32 same = 0;
            for (u32 r = rest; r; r &= r - 1)
              if (table[choice[std::countr_zero(r)]] == target) same |= r & (0 - r);
            rest &= ~same;
            if (same == mask) { pc = target; break; }
            split(same, target);
          }
          if (m == 0) ++pc;
          else if (mask == 0) gone = true;
          stay = false;
          break;
        }
        case Flow::Call:
          if (m && m != mask) { split(mask & ~m, pc + 1); }
          if (m) {
            w.groups[current].return_stack.push_back(pc + 1);
            pc = in.target;
            stay = alone && w.groups.size() == 1;
          } else ++pc;
          break;
        case Flow::Return:
        case Flow::Exit:
          if (!m) { ++pc; break; }
          if (in.flow == Flow::Return && !w.groups[current].return_stack.empty()) {
            if (m != mask) split(mask & ~m, pc + 1);
            pc = w.groups[current].return_stack.back();
            w.groups[current].return_stack.pop_back();
          } else {
            in.exec(w, in, m);
            w.live &= ~m;
            mask &= ~m;
            gone = mask == 0;
            ++pc;
          }
          stay = false;
          break;
        case Flow::WarpSync: {
          if (!m) { ++pc; break; }
          const u32 ready = synchronised(w, in, m);
          execute_sync(w, in, ready);
          if (ready == m) { ++pc; break; }
          if (u32 onward = mask & (~m | ready)) split(onward, pc + 1);
          w.groups[current].state = Group::State::WaitWarp;
          stay = false;
          break;
        }
        case Flow::Barrier:
          if (!m) { ++pc; break; }
          if (m != mask) split(mask & ~m, pc + 1);
          w.groups[current].pc = pc;
          w.groups[current].mask = mask;
          if (in.aligned && mask != w.live) w.groups[current].state = Group::State::WaitBarrier;
          else arrive(w, current, in);
          pc = w.groups[current].pc;
          stay = false;
          break;
      }
      ++used;
      if (--budget == 0 || --slice == 0 || pc >= limit) stay = false;
    }
    if (gone) {
      w.groups.erase(w.groups.begin() + std::ptrdiff_t(current));
    } else {
      w.groups[current].pc = pc;
      w.groups[current].mask = mask;
    }
    if (slice == 0 && w.groups.size() > 1) {
      // The lowest program counter may be spinning on something another group has to do: let each of the others
      // run for a while by hiding this one.
      for (size_t i = 0; i < w.groups.size(); ++i)
        if (w.groups[i].state == Group::State::Ready && i != current && !gone) {
          std::swap(w.groups[i], w.groups[current]);
          Group hidden = std::move(w.groups[i]);
          w.groups.erase(w.groups.begin() + std::ptrdiff_t(i));
          u64 turn = std::min<u64>(budget, kGroupSlice);
          budget -= turn;
          if (turn) run_warp(w, turn, used);
          w.groups.push_back(std::move(hidden));
          break;
        }
    }
  }
  return progress;
}

bool Block::unblock(Warp& w) {
  const Instr* code = launch.program->code.data();
  bool any = false;
  for (Group& g : w.groups) {
    const Instr& in = code[g.pc];
    if (g.state == Group::State::WaitBarrier && g.mask == w.live) {
      g.state = Group::State::Ready;
      any = true;
    } else if (g.state == Group::State::WaitWarp && synchronised(w, in, guarded(w, in, g.mask))) {
      g.state = Group::State::Ready;
      any = true;
    }
  }
  if (any) return true;
  // bar.warp.sync may be reached at different places by the lanes of one mask.
  for (Group& g : w.groups) {
    const Instr& in = code[g.pc];
    if (g.state != Group::State::WaitWarp || in.klass != Class::Barrier) continue;
    const u32 wanted = w.reg<u32>(in, in.operands - 1)[std::countr_zero(g.mask)];
    u32 present = 0;
    auto takes_part = [&](const Group& o) {
      const Instr& other = code[o.pc];
      return o.state == Group::State::WaitWarp && other.klass == Class::Barrier &&
             w.reg<u32>(other, other.operands - 1)[std::countr_zero(o.mask)] == wanted;
    };
    for (const Group& o : w.groups)
      if (takes_part(o)) present |= o.mask;
    if (wanted & w.live & ~present) continue;
    shared_shadow.warp_barrier(w.id, present);
    for (Group& o : w.groups)
      if (takes_part(o)) {
        o.state = Group::State::Ready;
        ++o.pc;
      }
    return true;
  }
  return false;
}

void Block::arrive(Warp& w, size_t group, const Instr& in) {
  Group& g = w.groups[group];
  const int first = in.definitions;
  const u32 lane = u32(std::countr_zero(g.mask));
  const u32 id = w.reg<u32>(in, first)[lane], count = w.reg<u32>(in, first + 1)[lane];
  if (id >= barriers.size()) raise_error(w, lane, "barrier", "barrier number " + std::to_string(id) + " is not 0..15");
  if (count % 32) raise_error(w, lane, "barrier", "barrier thread count " + std::to_string(count) + " is not a multiple of 32");
  if (in.aligned && g.mask != w.threads && (launch.options.checks & kCheckExitedLanes))
    raise_error(w, lane, "divergent-barrier",
                "only lanes " + hex(g.mask) + " of warp " + std::to_string(w.id) + " reach the barrier; lanes " +
                    hex(w.threads & ~g.mask) + " have returned without it");
  Barrier& b = barriers[id];
  if (!b.warps.empty() && b.expected != count)
    raise_error(w, lane, "barrier", "barrier " + std::to_string(id) + " is used with thread counts " +
                                        std::to_string(b.expected) + " and " + std::to_string(count) + " at once");
  b.expected = count;
  b.arrived += count && g.mask == w.live ? 32u : u32(std::popcount(g.mask));
  b.warps.push_back(w.id);
  const BarrierKind kind = BarrierKind(in.aux);
  if (kind >= BarrierKind::RedPopc) {
    b.popc += u32(std::popcount((w.pred(in, first + 2) ^ u32(in.imm)) & g.mask));
    b.voters += u32(std::popcount(g.mask));
  }
  if (kind == BarrierKind::Arrive) {
    ++g.pc;
  } else {
    g.state = Group::State::AtBarrier;
    g.barrier = id;
  }
  complete_barriers();
}

void Block::complete_barriers() {
  u32 live = 0;
  for (const Warp& w : warps) live += u32(std::popcount(w.live));
  for (u32 id = 0; id < barriers.size(); ++id) {
    Barrier& b = barriers[id];
    if (b.warps.empty() || b.arrived < (b.expected ? b.expected : live)) continue;
    if (b.expected && b.arrived > b.expected)
      throw EmulationError("barrier", "barrier: " + std::to_string(b.arrived) + " threads arrived at barrier " +
                                          std::to_string(id) + ", which expects " + std::to_string(b.expected) +
                                          "\n  kernel " + launch.kernel_name + ", " + describe_thread(*this, b.warps[0] * 32));
    if (b.arrived >= live) shared_shadow.block_barrier();
    else shared_shadow.warps_barrier(b.warps);
    for (Warp& w : warps)
      for (Group& g : w.groups)
        if (g.state == Group::State::AtBarrier && g.barrier == id) {
          const Instr& in = launch.program->code[g.pc];
          switch (BarrierKind(in.aux)) {
            case BarrierKind::RedPopc: for_lanes(g.mask, [&](int i) { w.reg<u32>(in, 0)[i] = b.popc; }); break;
            case BarrierKind::RedAnd:
            case BarrierKind::RedOr: {
              const bool value = BarrierKind(in.aux) == BarrierKind::RedAnd ? b.popc == b.voters : b.popc != 0;
              w.pred(in, 0) = (w.pred(in, 0) & ~g.mask) | (value ? g.mask : 0);
              break;
            }
            default: break;
          }
          g.state = Group::State::Ready;
          ++g.pc;
        }
    b = Barrier{};
  }
}

void Block::diagnose_deadlock() {
  const Instr* code = launch.program->code.data();
  auto elsewhere = [&](const Warp& w, const Group& me) {
    std::string s;
    for (const Group& g : w.groups)
      if (&g != &me)
        s += "\n  lanes " + hex(g.mask) + " wait at " + describe_instruction(launch, code[g.pc]);
    if (u32 exited = w.threads & ~w.live) s += "\n  lanes " + hex(exited) + " have exited";
    return s;
  };
  for (auto state : {Group::State::WaitBarrier, Group::State::WaitWarp, Group::State::AtBarrier})
    for (Warp& w : warps)
      for (Group& g : w.groups) {
        if (g.state != state) continue;
        w.pc = g.pc;
        const u32 lane = u32(std::countr_zero(g.mask));
        const Instr& in = code[g.pc];
        if (state == Group::State::WaitBarrier)
          raise_error(w, lane, "divergent-barrier",
                      "only lanes " + hex(g.mask) + " of warp " + std::to_string(w.id) + " reach the barrier; live lanes are " +
                          hex(w.live) + elsewhere(w, g));
        if (state == Group::State::WaitWarp)
          raise_error(w, lane, "sync-mask",
                      "mask " + hex(w.reg<u32>(in, in.operands - 1)[lane]) + " names lanes that do not arrive; lanes " +
                          hex(g.mask) + " wait" + elsewhere(w, g));
        raise_error(w, lane, "barrier-deadlock",
                    "barrier " + std::to_string(g.barrier) + " is reached by " + std::to_string(barriers[g.barrier].arrived) +
                        " threads and never by the others" + elsewhere(w, g));
      }
  throw EmulationError("internal", "internal: no warp can run in kernel " + launch.kernel_name);
}

// ---- Launch -------------------------------------------------------------------------------------------------------

namespace {

// Block order: identity, or seeded permutations i -> (a*i + b) mod n of as many blocks as fit at once. A block may wait
// for those of lower index, as a look-back scan does: a device starts blocks in order, so they make progress.
struct BlockOrder {
  u64 total, seed;
  u64 operator()(u64 i) const {
    const u64 first = i / kMaxResidentBlocks * kMaxResidentBlocks, n = std::min<u64>(kMaxResidentBlocks, total - first);
    if (!seed || n < 2) return i;
    u64 a = mix(seed + first + 1) % n;
    while (std::gcd(a, n) != 1) a = (a + 1) % n;
    return first + (a * (i - first) + mix(seed + first)) % n;
  }
};

}  // namespace

void Launch::run(LaunchStats& stats) {
  const auto start = std::chrono::steady_clock::now();
  const u64 total = blocks();
  const BlockOrder order{total, options.seed};
  std::atomic<u64> next{0};
  std::mutex mutex;
  std::unique_ptr<EmulationError> error;
  const unsigned threads = unsigned(std::max<u64>(1, std::min<u64>(options.threads, total)));
  std::vector<std::unique_ptr<Worker>> workers;
  for (unsigned i = 0; i < threads; ++i) workers.push_back(std::make_unique<Worker>(*this));

  auto work = [&](Worker& worker) {
    std::deque<std::unique_ptr<Block>> resident;  // started, not finished
    try {
      while (!stop) {
        std::unique_ptr<Block> block;
        u64 quantum = kBlockQuantum;
        if (cooperative || resident.size() < kMaxResidentBlocks)
          if (u64 i = next.fetch_add(1); i < total) block = std::make_unique<Block>(*this, order(i));
        if (!block) {
          if (resident.empty()) break;
          block = std::move(resident.front());
          resident.pop_front();
          quantum = kPollQuantum;
        }
        block->worker = &worker;
        bool done = false, may_wait = false;
        while (!done && !may_wait && !stop) {
          const u64 acquired = block->clock.acquired;
          done = block->run(quantum);
          may_wait = block->clock.acquired != acquired;  // it polls: let the other blocks get on
          if (!done && (instructions += quantum) > options.max_instructions)
            throw EmulationError("hang", "hang: more than " + std::to_string(options.max_instructions) +
                                             " warp instructions\n  kernel " + kernel_name + ", " +
                                             describe_thread(*block, 0) + "\n  warp 0 is at " +
                                             describe_instruction(*this, program->code[block->warps[0].pc]));
          quantum = kBlockQuantum;
        }
        if (!done) resident.push_back(std::move(block));
      }
    } catch (const EmulationError& e) {
      std::lock_guard guard(mutex);
      if (!error) error = std::make_unique<EmulationError>(e);
      stop = true;
    }
  };
  std::vector<std::thread> pool;
  for (unsigned i = 1; i < threads; ++i) pool.emplace_back(work, std::ref(*workers[i]));
  work(*workers[0]);
  for (std::thread& t : pool) t.join();

  std::map<std::pair<int, int>, LineStats> lines;
  for (size_t pc = 0; pc < program->code.size(); ++pc) {
    const Instr& in = program->code[pc];
    u64 warp_count = 0, lane_count = 0;
    for (const auto& w : workers) {
      warp_count += w->warp_executions[pc];
      lane_count += w->lane_executions[pc];
    }
    stats.warp_instructions[size_t(in.klass)] += warp_count;
    stats.thread_instructions[size_t(in.klass)] += lane_count;
    stats.flops[size_t(in.peak)] += double(in.flops) * double(lane_count);
    const SourceLocation& at = in.source->location;
    LineStats& line = lines[at.file ? std::pair(at.file, at.line) : std::pair(0, at.ptx_line)];
    if (line.place.empty())
      line.place = at.file ? program->module->files[size_t(at.file)] + ":" + std::to_string(at.line) : "PTX:" + std::to_string(at.ptx_line);
    line.warp_instructions += warp_count;
    line.thread_instructions += lane_count;
  }
  for (auto& [key, line] : lines)
    if (line.warp_instructions) stats.lines.push_back(std::move(line));
  std::sort(stats.lines.begin(), stats.lines.end(), [](const LineStats& a, const LineStats& b) { return a.warp_instructions > b.warp_instructions; });
  for (const auto& w : workers) stats.memory.add(w->memory);
  const GlobalShadow::Totals t = shadow.totals();
  stats.unique_read = t.read;
  stats.unique_written = t.written;
  stats.unique_read_sectors = t.read_sectors;
  stats.unique_written_sectors = t.written_sectors;
  stats.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (error) throw *error;
}

}  // namespace cudaemu
