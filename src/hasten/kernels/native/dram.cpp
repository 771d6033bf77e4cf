// A DRAM controller, event by event; kernels/dram_controller.py holds the same in plain Python, and what it means.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <vector>

#include "bindings.hpp"

namespace hasten {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max() / 4;
constexpr int64_t kPast = -kNever;
constexpr int64_t kFar = int64_t{1} << 28;  // cycles; what is further off is not chosen between

struct Timing {
  int64_t banks, groups, rcd, cl, cwl, rp, ras, ccd_s, ccd_l, rrd_s, rrd_l, faw, wr, wtr, rtp, rfc, refi, burst;
};
enum Page { kOpen, kOpenAdaptive, kClosed, kClosedAdaptive };
enum Order { kFifo, kGrouped, kFirstReady };
enum Buffer { kBankwise, kReadWrite, kShared };
enum Arbiter { kSimple, kInOrder, kReorder };
struct Knobs {
  int64_t page, scheduler, buffer, size, response, refresh, postponed, pulled, arbiter, active;
};
struct Totals {
  int64_t cycles, activates, precharges, reads, writes, refreshes, open_cycles, latency, worst, owed;
};

enum Command { kRead, kWrite, kActivate, kPrecharge };

struct Bank {
  int64_t row = -1, act_ready = 0, col_ready = 0, pre_ready = 0;
  int64_t group = 0;
  int32_t head = -1, tail = -1, count = 0, candidate = -1;
};

// A bank's next command, in what the choice between banks needs.
struct Lane {
  int64_t ready = kNever;  // as far as the bank itself goes
  int64_t rank = 0;        // after that: columns before others, the oldest first, and room for the bank's number
  int64_t command = kRead;
};

class Controller {
 public:
  Controller(const Timing& t, const Knobs& k, int64_t n, const int64_t* arrival, const int32_t* bank,
             const int32_t* row, const uint8_t* write)
      : t_(t), k_(k), n_(n), arrival_(arrival), bank_(bank), row_(row), write_(write), banks_(t.banks), next_(n, -1),
        previous_(n, -1), done_(n, -1), taken_(k.arbiter == kReorder ? n : 0, 0), next_due_(t.refi) {
    order_.reserve(n);
    members_.resize(t.groups);
    for (int64_t b = 0; b < t.banks; ++b) {
      banks_[b].group = b % t.groups;
      members_[b % t.groups] |= uint64_t{1} << b;
      all_ |= uint64_t{1} << b;
    }
  }

  Totals run() {
    while (served_ < n_) {
      if (k_.refresh)
        while (now_ >= next_due_) {
          ++owed_;
          next_due_ += t_.refi;
        }
      respond();
      admit();
      if (k_.refresh) {
        if (owed_ > 0 && (pending_ == 0 || owed_ > k_.postponed)) {
          refresh();
          continue;
        }
        const int64_t following = next_arrival();
        if (pending_ == 0 && owed_ > -k_.pulled && following < kNever && following - now_ >= t_.rfc + t_.rp) {
          refresh();
          continue;
        }
      }
      if (pending_ == 0) {
        int64_t next = next_arrival();
        if (limited() && active_ >= k_.active) next = next_response();
        if (k_.refresh) next = std::min(next, next_due_);
        now_ = std::max(now_ + 1, next);
        continue;
      }
      // Soonest first, then columns, then the oldest: one number orders them.
      set_floors();
      const int64_t earliest = std::max(now_, free_);
      int64_t key = kNever;
      for (; stale_; stale_ &= stale_ - 1) choose(__builtin_ctzll(stale_));
      for (int b = 0; b < t_.banks; ++b) {
        const Lane& lane = lanes_[b];
        const int64_t at = std::max(lane.ready, floors_[lane.command][(same_column_ >> b & 1) | (same_act_ >> b & 1) << 1]);
        const int64_t wait = std::min(std::max<int64_t>(at - earliest, 0), kFar);
        key = std::min(key, wait << 34 | lane.rank | b);
      }
      const int64_t best = earliest + (key >> 34);
      const int best_bank = static_cast<int>(key & 63);
      const int32_t best_request = banks_[best_bank].candidate;
      const bool best_column = lanes_[best_bank].command <= kWrite;
      int64_t event = kNever;
      if (!(limited() && active_ >= k_.active))
        event = next_candidate();
      else if (admitted_ < n_)
        event = next_response();
      if (k_.refresh && owed_ + 1 > k_.postponed) event = std::min(event, next_due_);
      if (event < best && event > now_) {
        now_ = event;
        continue;
      }
      issue(best, best_bank, best_request, best_column);
    }
    return finish();
  }

 private:
  bool limited() const { return k_.arbiter != kSimple; }

  // The next request that has not arrived yet, wherever the arbiter is.
  int64_t next_arrival() {
    while (arrived_ < n_ && arrival_[arrived_] <= now_) ++arrived_;
    return arrived_ < n_ ? arrival_[arrived_] : kNever;
  }

  // The next arrival that could be taken in: one behind a request without room cannot.
  int64_t next_candidate() {
    if (k_.arbiter != kReorder) return cursor_ < n_ && arrival_[cursor_] > now_ ? arrival_[cursor_] : kNever;
    const int64_t at = next_arrival();
    return arrived_ < cursor_ + k_.active ? at : kNever;
  }

  int64_t next_response() const {
    if (k_.response == 0) {
      const int64_t at = front_ < admitted_ ? done_[order_[front_]] : -1;
      return at < 0 ? kNever : std::max(at, now_ + 1);
    }
    return finishing_.empty() ? kNever : std::max(finishing_.top(), now_ + 1);
  }

  void respond() {
    if (!limited()) return;
    if (k_.response == 0) {
      while (front_ < admitted_ && done_[order_[front_]] >= 0 && done_[order_[front_]] <= now_) {
        ++front_;
        --active_;
        rescan_ = true;
      }
    } else {
      while (!finishing_.empty() && finishing_.top() <= now_) {
        finishing_.pop();
        --active_;
        rescan_ = true;
      }
    }
  }

  bool room(int64_t r) const {
    switch (k_.buffer) {
      case kBankwise:
        return banks_[bank_[r]].count < k_.size;
      case kReadWrite:
        return kinds_[write_[r]] < k_.size;
      default:
        return pending_ < k_.size;
    }
  }

  // Whether no request at all finds room, as far as that is known without asking each.
  bool full() const {
    if (k_.buffer == kShared) return pending_ >= k_.size;
    return k_.buffer == kReadWrite && std::min(kinds_[0], kinds_[1]) >= k_.size;
  }

  void push(int64_t r) {
    Bank& bank = banks_[bank_[r]];
    previous_[r] = bank.tail;
    if (bank.tail >= 0)
      next_[bank.tail] = static_cast<int32_t>(r);
    else
      bank.head = static_cast<int32_t>(r);
    bank.tail = static_cast<int32_t>(r);
    ++bank.count;
    stale_ |= uint64_t{1} << bank_[r];
    ++pending_;
    ++kinds_[write_[r]];
    ++admitted_;
    order_.push_back(static_cast<int32_t>(r));
    ++active_;
  }

  void admit() {
    if (k_.arbiter != kReorder) {
      while (cursor_ < n_ && arrival_[cursor_] <= now_ && room(cursor_) && (!limited() || active_ < k_.active))
        push(cursor_++);
      return;
    }
    const int64_t before = arrived_;
    next_arrival();
    if (arrived_ != before) rescan_ = true;
    while (rescan_) {
      rescan_ = false;
      const int64_t last = std::min({n_, cursor_ + k_.active, arrived_});
      for (int64_t r = cursor_; r < last && active_ < k_.active && !full(); ++r)
        if (!taken_[r] && room(r)) {
          taken_[r] = 1;
          push(r);
        }
      for (; cursor_ < n_ && taken_[cursor_]; ++cursor_) rescan_ = true;
    }
  }

  int32_t find(const Bank& bank, int kind) const {
    for (int32_t r = bank.head; r >= 0; r = next_[r])
      if (row_[r] == bank.row && (kind < 0 || write_[r] == kind)) return r;
    return -1;
  }

  void choose(int b) {
    Bank& bank = banks_[b];
    Lane& lane = lanes_[b];
    if (!bank.count) {
      lane.ready = kNever;
      return;
    }
    int32_t r = bank.head;
    if (k_.scheduler != kFifo && bank.row >= 0) {
      int32_t hit = k_.scheduler == kGrouped ? find(bank, last_write_) : -1;
      if (hit < 0) hit = find(bank, -1);
      if (hit >= 0) r = hit;
    }
    bank.candidate = r;
    const bool column = bank.row == row_[r];
    lane.command = column ? (write_[r] ? kWrite : kRead) : bank.row >= 0 ? kPrecharge : kActivate;
    lane.ready = column ? bank.col_ready : bank.row >= 0 ? bank.pre_ready : bank.act_ready;
    // Of requests the last 27 bits: those in the queues are never so far apart.
    lane.rank = static_cast<int64_t>(!column) << 33 | (static_cast<int64_t>(r) & 0x7ffffff) << 6;
  }

  // What the banks share, by command and by whether the bank is in the group that was last used.
  void set_floors() {
    for (int same = 0; same < 4; ++same) {
      const int64_t apart = last_column_ + (same & 1 ? t_.ccd_l : t_.ccd_s);
      floors_[kRead][same] = std::max(apart, last_written_ + t_.cwl + t_.burst + t_.wtr);
      floors_[kWrite][same] = std::max(apart, last_read_ + t_.cl + t_.burst + 2 - t_.cwl);
      floors_[kActivate][same] = std::max(last_act_ + (same & 2 ? t_.rrd_l : t_.rrd_s), acts_[act_place_] + t_.faw);
    }
  }

  void opened(int64_t at) {
    if (open_ == 0 && at > last_close_) precharged_ += at - last_close_;
    ++open_;
  }

  void closed(int64_t at) {
    --open_;
    last_close_ = std::max(last_close_, at);
  }

  void issue(int64_t at, int b, int32_t r, bool column) {
    Bank& bank = banks_[b];
    stale_ |= uint64_t{1} << b;
    now_ = at;
    free_ = at + 1;
    if (!column) {
      if (bank.row >= 0) {
        bank.row = -1;
        bank.act_ready = std::max(bank.act_ready, at + t_.rp);
        ++totals_.precharges;
        closed(at);
        return;
      }
      bank.row = row_[r];
      bank.col_ready = at + t_.rcd;
      bank.pre_ready = at + t_.ras;
      last_act_ = at;
      same_act_ = members_[bank.group];
      acts_[act_place_] = at;
      act_place_ = (act_place_ + 1) % 4;
      ++totals_.activates;
      opened(at);
      return;
    }
    last_column_ = at;
    same_column_ = members_[bank.group];
    if (write_[r]) {
      last_written_ = at;
      done_[r] = at + t_.cwl + t_.burst;
      bank.pre_ready = std::max(bank.pre_ready, at + t_.cwl + t_.burst + t_.wr);
      ++totals_.writes;
    } else {
      last_read_ = at;
      done_[r] = at + t_.cl + t_.burst;
      bank.pre_ready = std::max(bank.pre_ready, at + t_.rtp);
      ++totals_.reads;
    }
    if (k_.scheduler == kGrouped && last_write_ != write_[r]) stale_ = all_;
    last_write_ = write_[r];
    pop(bank, r);
    if (limited() && k_.response) finishing_.push(done_[r]);
    bool close = k_.page == kClosed;
    if (k_.page == kClosedAdaptive) close = find(bank, -1) < 0;
    if (k_.page == kOpenAdaptive) close = bank.count && find(bank, -1) < 0;
    if (close) {
      bank.row = -1;
      bank.act_ready = std::max(bank.act_ready, bank.pre_ready + t_.rp);
      ++totals_.precharges;
      closed(bank.pre_ready);
    }
  }

  void pop(Bank& bank, int32_t r) {
    const int32_t before = previous_[r], after = next_[r];
    if (before >= 0)
      next_[before] = after;
    else
      bank.head = after;
    if (after >= 0)
      previous_[after] = before;
    else
      bank.tail = before;
    --bank.count;
    --pending_;
    --kinds_[write_[r]];
    ++served_;
    rescan_ = true;
  }

  void refresh() {
    int64_t at = std::max(now_, free_);
    bool any = false;
    for (const Bank& bank : banks_)
      if (bank.row >= 0) {
        at = std::max(at, bank.pre_ready);
        any = true;
      }
    if (any) {
      for (Bank& bank : banks_)
        if (bank.row >= 0) {
          bank.row = -1;
          bank.act_ready = std::max(bank.act_ready, at + t_.rp);
          closed(at);
        }
      ++totals_.precharges;
    }
    for (const Bank& bank : banks_) at = std::max(at, bank.act_ready);
    for (Bank& bank : banks_) {
      bank.act_ready = at + t_.rfc;
    }
    stale_ = all_;
    now_ = at;
    free_ = at + 1;
    ++totals_.refreshes;
    --owed_;
  }

  Totals finish() {
    int64_t before = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const int32_t r = order_[i];
      const int64_t at = k_.response == 0 ? std::max(before, done_[r]) : done_[r];
      before = at;
      totals_.cycles = std::max(totals_.cycles, at);
      totals_.latency += at - arrival_[r];
      totals_.worst = std::max(totals_.worst, at - arrival_[r]);
    }
    if (open_ == 0) precharged_ += std::max<int64_t>(0, totals_.cycles - last_close_);
    totals_.open_cycles = totals_.cycles - std::min(precharged_, totals_.cycles);
    totals_.owed = std::max<int64_t>(0, owed_);
    return totals_;
  }

  const Timing t_;
  const Knobs k_;
  const int64_t n_;
  const int64_t* arrival_;
  const int32_t* bank_;
  const int32_t* row_;
  const uint8_t* write_;
  std::vector<Bank> banks_;
  std::vector<uint64_t> members_;  // banks of each group
  Lane lanes_[64];
  uint64_t stale_ = 0, all_ = 0, same_column_ = 0, same_act_ = 0;
  std::vector<int32_t> next_, previous_, order_;
  std::vector<int64_t> done_;
  std::vector<uint8_t> taken_;
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> finishing_;
  int64_t now_ = 0, free_ = 0, cursor_ = 0, arrived_ = 0, admitted_ = 0, front_ = 0, active_ = 0, pending_ = 0;
  int64_t served_ = 0, owed_ = 0, next_due_, kinds_[2] = {0, 0};
  int64_t last_column_ = kPast, last_read_ = kPast, last_written_ = kPast, last_act_ = kPast;
  int64_t acts_[4] = {kPast, kPast, kPast, kPast}, act_place_ = 0;
  int64_t open_ = 0, last_close_ = 0, precharged_ = 0;
  int last_write_ = 0;
  int64_t floors_[4][4] = {};
  bool rescan_ = true;
  Totals totals_{};
};

void simulate(uintptr_t timing, uintptr_t knobs, int64_t n, uintptr_t arrival, uintptr_t bank, uintptr_t row,
              uintptr_t write, uintptr_t totals) {
  Controller controller(*pointer<const Timing>(timing), *pointer<const Knobs>(knobs), n,
                        pointer<const int64_t>(arrival), pointer<const int32_t>(bank), pointer<const int32_t>(row),
                        pointer<const uint8_t>(write));
  *pointer<Totals>(totals) = controller.run();
}

}  // namespace

void bind_dram(nb::module_& m) { m.def("dram_simulate", &simulate, nb::call_guard<nb::gil_scoped_release>()); }

}  // namespace hasten
