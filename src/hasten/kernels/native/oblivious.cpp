// The trusted half of an oblivious map: where every key is, what waits for its page, and what an access does to the
// pages that it was given. kernels/oblivious_bins.py holds the same in plain Python, and says what it means.
//
// All memory is this object's own: pages and values come and go as Python's bytes, whose sizes are checked.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.hpp"

namespace hasten {
namespace {

constexpr uint32_t kNone = 0xFFFFFFFF;
constexpr int64_t kHead = 12;  // bytes of a slot before its value: the key, and the value's length plus one
enum Kind : uint8_t { kFree, kPage, kTrusted, kBuffered };
enum Operation { kGet, kPut, kPutAbsent, kDelete };
enum Phase { kIdle, kReading, kWriting };
enum Status { kDone, kFull, kOverflow };

template <class T>
T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <class T>
void store(uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

// A uniform word as a number below n; how far from uniform is below n / 2^64.
uint64_t scaled(uint64_t word, uint64_t n) { return uint64_t((static_cast<unsigned __int128>(word) * n) >> 64); }

// Keys to items. A key has two buckets by a secret hash and is in the one that was emptier; a look-up scans both whole.
class KeyTable {
 public:
  static constexpr int64_t kSlots = 8, kItemsPerBucket = 3;

  KeyTable(int64_t capacity, const uint8_t* seed)
      : buckets_(uint64_t(std::max<int64_t>(4, capacity / kItemsPerBucket + 1))),
        seeds_{load<uint64_t>(seed), load<uint64_t>(seed + 8)},
        keys_(buckets_ * kSlots, 0),
        items_(buckets_ * kSlots, kNone) {}

  uint32_t find(uint64_t key) const {
    uint32_t found = kNone;
    for (const uint64_t bucket : places(key))
      for (uint64_t s = bucket * kSlots; s < (bucket + 1) * kSlots; ++s)
        found = (keys_[s] == key) & (items_[s] != kNone) ? items_[s] : found;
    return found;
  }

  bool has_room(uint64_t key) const { return emptier(key) < buckets_ * kSlots; }

  void insert(uint64_t key, uint32_t item) {
    const uint64_t s = emptier(key);
    keys_[s] = key;
    items_[s] = item;
  }

  void erase(uint64_t key) {
    for (const uint64_t bucket : places(key))
      for (uint64_t s = bucket * kSlots; s < (bucket + 1) * kSlots; ++s)
        if (keys_[s] == key) items_[s] = kNone;
  }

  int64_t bytes() const { return int64_t(keys_.size() * 8 + items_.size() * 4); }

 private:
  static uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }

  std::array<uint64_t, 2> places(uint64_t key) const {
    const uint64_t hash = mixed(key ^ seeds_[0]);
    return {scaled(hash, buckets_), scaled(mixed(hash ^ seeds_[1]), buckets_)};
  }

  // A free slot of the emptier bucket, or past the last one.
  uint64_t emptier(uint64_t key) const {
    uint64_t best = buckets_ * kSlots;
    int64_t most = 0;
    for (const uint64_t bucket : places(key)) {
      int64_t room = 0;
      uint64_t last = 0;
      for (uint64_t s = bucket * kSlots; s < (bucket + 1) * kSlots; ++s)
        if (items_[s] == kNone) ++room, last = s;
      if (room > most) most = room, best = last;
    }
    return best;
  }

  uint64_t buckets_;
  std::array<uint64_t, 2> seeds_;
  std::vector<uint64_t> keys_;
  std::vector<uint32_t> items_;
};

struct Item {
  uint64_t key = 0;
  uint32_t a = 0, b = 0;         // its two bins
  uint32_t slot = kNone;         // of the value store, unless it is in a page
  uint32_t next = kNone;         // that waits for the same page
  uint8_t kind = kFree, second = 0;  // whether it is in b
  uint32_t bin() const { return second ? b : a; }
};

void expect(bool good, const char* why) {
  if (!good) throw std::invalid_argument(why);
}

const uint8_t* data(const nb::bytes& b) { return reinterpret_cast<const uint8_t*>(b.c_str()); }

class ObliviousBins {
 public:
  ObliviousBins(int64_t capacity, int64_t bins, int64_t trusted, int64_t slots, int64_t trusted_most,
                int64_t buffer_most, int64_t value_bytes, int64_t choices, nb::bytes seed)
      : capacity_(in(capacity, 1, int64_t{1} << 30, "capacity")),
        bins_(in(bins, 2, int64_t{1} << 30, "bins")),
        trusted_bins_(in(trusted, 0, bins, "trusted bins")),
        slots_(in(slots, 1, 4096, "slots of a page")),
        trusted_most_(in(trusted_most, 0, int64_t{1} << 30, "trusted items")),
        buffer_most_(in(buffer_most, 0, int64_t{1} << 30, "buffered items")),
        value_bytes_(in(value_bytes, 0, int64_t{1} << 24, "bytes of a value")),
        choices_(in(choices, 1, 2, "choices")),
        slot_bytes_(kHead + value_bytes_),
        page_bytes_(slots_ * slot_bytes_),
        table_(capacity_, seed.size() == 16 ? data(seed) : throw std::invalid_argument("a seed has 16 bytes")),
        items_(size_t(capacity_)),
        loads_(size_t(bins_), 0),
        heads_(size_t(pages()), kNone) {
    expect(page_bytes_ <= int64_t{1} << 28, "a page is larger than 256 MiB");
    const int64_t places = std::min(trusted_most_, capacity_) + std::min(buffer_most_, capacity_);
    values_.resize(size_t(places * value_bytes_) + 1);  // one more, so that none of these is null
    lengths_.resize(size_t(places));
    free_slots_.resize(size_t(places));
    for (int64_t i = 0; i < places; ++i) free_slots_[size_t(i)] = uint32_t(places - 1 - i);
    for (auto& page : out_) page.resize(size_t(page_bytes_));
    old_.resize(size_t(value_bytes_) + 1);
    new_.resize(size_t(value_bytes_) + 1);
  }

  int64_t pages() const { return bins_ - trusted_bins_; }
  int64_t page_bytes() const { return page_bytes_; }
  int64_t count() const { return count_; }
  int64_t phase() const { return phase_; }

  // Places items that all are new, into pages and trusted bins; the pages' contents are asked for by initial().
  void build(nb::bytes keys, nb::bytes lengths, nb::bytes values, nb::bytes words) {
    expect(count_ == 0 && phase_ == kIdle && fresh_ == 0, "items are placed at once in an empty map alone");
    const int64_t n = int64_t(keys.size() / 8);
    expect(keys.size() % 8 == 0 && n <= capacity_, "more items than there is room for");
    expect(int64_t(lengths.size()) == 4 * n && int64_t(values.size()) == n * value_bytes_ &&
               int64_t(words.size()) == 16 * n, "keys, lengths, values and words are of different numbers");
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t length = load<uint32_t>(data(lengths) + 4 * i);
      const uint64_t key = load<uint64_t>(data(keys) + 8 * i);
      expect(length <= uint64_t(value_bytes_), "a value is too long");
      expect(table_.find(key) == kNone, "a key comes twice");
      if (!table_.has_room(key)) throw std::runtime_error("the position map is full: choose another seed");
      uint32_t pair[2];
      draw(data(words) + 16 * i, pair);
      const bool second = choices_ == 2 && loads_[pair[1]] < loads_[pair[0]];
      const uint32_t bin = pair[second];
      const bool host = bin >= trusted_bins_;
      if (loads_[bin] >= slots_ || (!host && trusted_ >= trusted_most_)) throw std::overflow_error("a bound is passed");
      Item& item = items_[size_t(i)];
      item = {key, pair[0], pair[1], kNone, kNone, uint8_t(host ? kPage : kTrusted), uint8_t(second)};
      table_.insert(key, uint32_t(i));
      ++loads_[bin];
      if (host) {
        item.next = heads_[bin - trusted_bins_];
        item.slot = length;  // until its page is written
        heads_[bin - trusted_bins_] = uint32_t(i);
      } else {
        keep(item, data(values) + i * value_bytes_, length);
        ++trusted_;
      }
      ++count_;
      fresh_ = i + 1;
      peak_load_ = std::max<int64_t>(peak_load_, loads_[bin]);
    }
    peak_trusted_ = trusted_;
    source_ = values;
    building_ = true;
  }

  nb::bytes initial(int64_t page) {
    expect(building_ && page >= 0 && page < pages(), "no page that waits for its first contents");
    uint8_t* at = out_[0].data();
    std::memset(at, 0, size_t(page_bytes_));
    for (uint32_t i = heads_[size_t(page)]; i != kNone;) {
      Item& item = items_[i];
      write_slot(at, item.key, data(source_) + int64_t(i) * value_bytes_, item.slot);
      at += slot_bytes_;
      const uint32_t next = item.next;
      item.slot = item.next = kNone;
      i = next;
    }
    heads_[size_t(page)] = kNone;
    return nb::bytes(reinterpret_cast<const char*>(out_[0].data()), size_t(page_bytes_));
  }

  void built() {
    for (const uint32_t head : heads_) expect(head == kNone, "a page has not been written yet");
    source_ = nb::bytes("", 0);
    building_ = false;
  }

  nb::tuple begin(uint64_t key, nb::bytes words, int64_t offset) {
    expect(phase_ == kIdle && !building_, "an access is under way");
    expect(offset >= 0 && offset + 32 <= int64_t(words.size()), "an access takes 32 random bytes");
    key_ = key;
    start(table_.find(key), data(words) + offset);
    return touched();
  }

  // An access that failed while its pages were read, again, with other random bytes.
  nb::tuple resume(nb::bytes words, int64_t offset) {
    expect(phase_ == kReading, "no access has failed");
    expect(offset >= 0 && offset + 32 <= int64_t(words.size()), "an access takes 32 random bytes");
    draw(data(words) + offset + 16, drawn_);
    return touched();
  }

  nb::tuple finish(int64_t operation, nb::object value, nb::bytes first, nb::bytes second) {
    expect(phase_ == kReading, "no access is under way");
    expect(operation >= kGet && operation <= kDelete, "an operation that is none");
    const nb::bytes* given[2] = {&first, &second};
    const uint8_t* in[2] = {nullptr, nullptr};
    for (int p = 0; p < 2; ++p) {
      expect(int64_t(given[p]->size()) == (p < touched_ ? page_bytes_ : 0), "a page of another size");
      in[p] = data(*given[p]);
    }
    size_t length = 0;
    if (operation == kPut || operation == kPutAbsent) {
      expect(nb::isinstance<nb::bytes>(value), "a value is missing");
      const nb::bytes bytes = nb::borrow<nb::bytes>(value);
      length = bytes.size();
      expect(length <= size_t(value_bytes_), "a value is too long");
      std::memcpy(new_.data(), bytes.c_str(), length);
    }
    const Status status = commit(Operation(operation), uint32_t(length), in);
    nb::object old = nb::none();
    if (status != kOverflow && found_)
      old = nb::bytes(reinterpret_cast<const char*>(old_.data()), size_t(old_length_));
    return nb::make_tuple(int(status), old, outgoing());
  }

  nb::tuple outgoing() const {
    if (phase_ != kWriting) return nb::make_tuple();
    const auto page = [&](int p) {
      return nb::bytes(reinterpret_cast<const char*>(out_[p].data()), size_t(page_bytes_));
    };
    return touched_ == 2 ? nb::make_tuple(page(0), page(1)) : nb::make_tuple(page(0));
  }

  nb::tuple touched() const {
    if (touched_ == 2) return nb::make_tuple(page_[0], page_[1]);
    return touched_ == 1 ? nb::make_tuple(page_[0]) : nb::make_tuple();
  }

  void written() {
    expect(phase_ == kWriting, "no page waits to be written");
    phase_ = kIdle;
  }

  // Keeps the pages here, unsealed, and gets one item after another at random: 40 bytes of words an access.
  void exercise(nb::bytes words) {
    expect(words.size() % 40 == 0, "an access takes 40 random bytes here");
    expect(!building_ && phase_ != kWriting && (phase_ == kIdle || !held_.empty()), "an access is under way");
    expect(count_ > 0 && fresh_ == count_, "there is no item, or one was taken away");
    if (held_.empty()) hold();
    for (size_t at = 0; at < words.size(); at += 40) {
      const uint8_t* w = data(words) + at;
      if (phase_ == kReading)
        draw(w + 24, drawn_);
      else
        start(uint32_t(scaled(load<uint64_t>(w), uint64_t(count_))), w + 8);
      const uint8_t* in[2] = {nullptr, nullptr};
      for (int p = 0; p < touched_; ++p) in[p] = held_.data() + page_[p] * page_bytes_;
      if (commit(kGet, 0, in) == kOverflow) continue;
      for (int p = 0; p < touched_; ++p)
        std::memcpy(held_.data() + page_[p] * page_bytes_, out_[p].data(), size_t(page_bytes_));
      phase_ = kIdle;
    }
  }

  // What page `page` holds that exercise() keeps here: the sealed ones are then out of date.
  nb::bytes held(int64_t page) const {
    expect(!held_.empty() && page >= 0 && page < pages(), "no page is kept here");
    return nb::bytes(reinterpret_cast<const char*>(held_.data() + page * page_bytes_), size_t(page_bytes_));
  }

  void give(int64_t page, nb::bytes contents) {
    expect(page >= 0 && page < pages() && int64_t(contents.size()) == page_bytes_ && phase_ == kIdle, "no such page");
    if (held_.empty()) hold();
    std::memcpy(held_.data() + page * page_bytes_, data(contents), size_t(page_bytes_));
  }

  nb::list keys() const {
    nb::list found;
    for (int64_t i = 0; i < fresh_; ++i)
      if (items_[size_t(i)].kind != kFree) found.append(items_[size_t(i)].key);
    return found;
  }

  // Keys and values that are in no page.
  nb::list kept() const {
    expect(!building_, "the map is not built yet");
    nb::list found;
    for (int64_t i = 0; i < fresh_; ++i) {
      const Item& item = items_[size_t(i)];
      if (item.kind == kTrusted || item.kind == kBuffered)
        found.append(nb::make_tuple(item.key, nb::bytes(reinterpret_cast<const char*>(value(item.slot)),
                                                        size_t(lengths_[item.slot]))));
    }
    return found;
  }

  nb::dict statistics() const {
    int64_t labels = 0;
    for (const uint32_t head : heads_) labels += head != kNone;
    nb::dict found;
    found["accesses"] = accesses_;
    found["failures"] = failures_;
    found["items"] = count_;
    found["trusted"] = trusted_;
    found["buffered"] = buffered_;
    found["waiting_pages"] = labels;
    found["fullest_bin"] = int64_t(*std::max_element(loads_.begin(), loads_.end()));
    found["peak_load"] = peak_load_;
    found["peak_trusted"] = peak_trusted_;
    found["peak_buffered"] = peak_buffered_;
    found["peak_together"] = peak_together_;
    return found;
  }

  nb::dict memory() const {
    nb::dict found;
    found["position_map"] = table_.bytes() + int64_t(items_.size() * sizeof(Item));
    found["values"] = int64_t(values_.size() + 4 * lengths_.size() + 4 * free_slots_.capacity());
    found["bins"] = int64_t(2 * loads_.size() + 4 * heads_.size());
    found["pages"] = int64_t(2 * size_t(page_bytes_) + old_.size() + new_.size());
    return found;
  }

 private:
  static int64_t in(int64_t value, int64_t least, int64_t most, const char* what) {
    if (value < least || value > most) throw std::invalid_argument(std::string(what) + ": out of range");
    return value;
  }

  // Two bins, different ones, from two words.
  void draw(const uint8_t* words, uint32_t* pair) const {
    pair[0] = uint32_t(scaled(load<uint64_t>(words), uint64_t(bins_)));
    pair[1] = uint32_t(scaled(load<uint64_t>(words + 8), uint64_t(bins_ - 1)));
    pair[1] += pair[1] >= pair[0];
  }

  void start(uint32_t item, const uint8_t* words) {
    item_ = item;
    uint32_t pair[2];
    draw(words, pair);
    draw(words + 16, drawn_);
    if (item != kNone) {
      pair[0] = items_[item].a;
      pair[1] = items_[item].b;
    }
    touched_ = 0;
    for (const uint32_t bin : pair)
      if (bin >= trusted_bins_) page_[touched_++] = bin - trusted_bins_;
    phase_ = kReading;
  }

  uint8_t* value(uint32_t slot) { return values_.data() + int64_t(slot) * value_bytes_; }
  const uint8_t* value(uint32_t slot) const { return values_.data() + int64_t(slot) * value_bytes_; }

  void keep(Item& item, const uint8_t* from, uint32_t length) {
    item.slot = free_slots_.back();
    free_slots_.pop_back();
    lengths_[item.slot] = length;
    std::memcpy(value(item.slot), from, length);
  }

  void release(Item& item) {
    free_slots_.push_back(item.slot);
    item.slot = kNone;
  }

  void write_slot(uint8_t* at, uint64_t key, const uint8_t* from, uint32_t length) {
    store<uint64_t>(at, key);
    store<uint32_t>(at + 8, length + 1);
    std::memcpy(at + kHead, from, length);
  }

  void hold() { held_.assign(size_t(pages() * page_bytes_), 0); }

  // What the access does: looks first whether all bounds hold, and changes nothing where one does not.
  Status commit(Operation operation, uint32_t length, const uint8_t* const* in) {
    const bool known = item_ != kNone;
    const Item was = known ? items_[item_] : Item();
    int64_t mine[2] = {-1, -1}, flushed = 0;
    bool seen = was.kind != kPage;
    for (int p = 0; p < touched_; ++p) {
      const bool here = known && was.kind == kPage && was.bin() == trusted_bins_ + page_[p];
      int64_t left = 0;
      for (int64_t s = 0; s < slots_; ++s) {
        const uint8_t* slot = in[p] + s * slot_bytes_;
        const uint32_t size = load<uint32_t>(slot + 8);
        if (!size) continue;
        expect(int64_t(size) - 1 <= value_bytes_, "a page holds what no page holds");
        if (here && mine[p] < 0 && load<uint64_t>(slot) == was.key)
          mine[p] = s, seen = true;
        else
          ++left;
      }
      for (uint32_t i = heads_[page_[p]]; i != kNone; i = items_[i].next) ++flushed, left += i != item_;
      expect(left <= slots_, "a page holds more than it has room for");
    }
    expect(seen, "a page is without an item of it");

    const bool full = !known && (operation == kPut || operation == kPutAbsent) && count_ == capacity_;
    const bool stays = operation == kDelete ? false : known || ((operation == kPut || operation == kPutAbsent) && !full);
    const auto loaded = [&](uint32_t bin) { return int64_t(loads_[bin]) - (known && was.bin() == bin); };
    const bool second = choices_ == 2 && loaded(drawn_[1]) < loaded(drawn_[0]);
    const uint32_t bin = drawn_[second];
    const bool host = bin >= trusted_bins_;
    if (stays) {
      if (!known && !table_.has_room(key_)) throw std::runtime_error("the position map is full: make the map anew");
      const int64_t trusted = trusted_ - (known && was.kind == kTrusted) + !host;
      const int64_t buffered = buffered_ - flushed + host;
      if (loaded(bin) >= slots_ || trusted > trusted_most_ || buffered > buffer_most_) {
        ++failures_;
        return kOverflow;
      }
    }

    found_ = known;
    for (int p = 0; p < touched_; ++p) {  // everything but the item itself
      uint8_t* at = out_[p].data();
      for (int64_t s = 0; s < slots_; ++s) {
        const uint8_t* slot = in[p] + s * slot_bytes_;
        const uint32_t size = load<uint32_t>(slot + 8);
        if (!size) continue;
        if (s == mine[p]) {
          old_length_ = size - 1;
          std::memcpy(old_.data(), slot + kHead, old_length_);
          continue;
        }
        std::memcpy(at, slot, size_t(slot_bytes_));
        at += slot_bytes_;
      }
      for (uint32_t i = heads_[page_[p]]; i != kNone;) {
        Item& item = items_[i];
        const uint32_t next = item.next;
        item.next = kNone;
        if (i != item_) {
          write_slot(at, item.key, value(item.slot), lengths_[item.slot]);
          // The rest of a slot is what a longer value left in the buffer before, unless it is cleared.
          std::memset(at + kHead + lengths_[item.slot], 0, size_t(value_bytes_ - lengths_[item.slot]));
          at += slot_bytes_;
          item.kind = kPage;
          release(item);
        }
        i = next;
      }
      heads_[page_[p]] = kNone;
      std::memset(at, 0, size_t(out_[p].data() + page_bytes_ - at));
    }
    buffered_ -= flushed;
    if (known) {
      Item& item = items_[item_];
      if (was.kind != kPage) {
        old_length_ = lengths_[was.slot];
        std::memcpy(old_.data(), value(was.slot), old_length_);
        release(item);
        trusted_ -= was.kind == kTrusted;
      }
      --loads_[was.bin()];
    }
    if (stays) {
      const bool kept = operation == kGet || (operation == kPutAbsent && known);
      uint32_t index = item_;
      if (!known) {
        index = free_items_.empty() ? uint32_t(fresh_++) : free_items_.back();
        if (!free_items_.empty()) free_items_.pop_back();
        table_.insert(key_, index);
        ++count_;
      }
      Item& item = items_[index];
      item = {known ? was.key : key_, drawn_[0], drawn_[1], kNone, kNone, uint8_t(host ? kBuffered : kTrusted),
              uint8_t(second)};
      keep(item, kept ? old_.data() : new_.data(), kept ? old_length_ : length);
      ++loads_[bin];
      if (host) {
        item.next = heads_[bin - trusted_bins_];
        heads_[bin - trusted_bins_] = index;
        ++buffered_;
      } else {
        ++trusted_;
      }
      peak_load_ = std::max<int64_t>(peak_load_, loads_[bin]);
      peak_trusted_ = std::max(peak_trusted_, trusted_);
      peak_buffered_ = std::max(peak_buffered_, buffered_);
      peak_together_ = std::max(peak_together_, trusted_ + buffered_);
    } else if (known) {
      table_.erase(was.key);
      items_[item_] = Item();
      free_items_.push_back(item_);
      --count_;
    }
    ++accesses_;
    phase_ = touched_ ? kWriting : kIdle;
    return full ? kFull : kDone;
  }

  const int64_t capacity_, bins_, trusted_bins_, slots_, trusted_most_, buffer_most_, value_bytes_, choices_;
  const int64_t slot_bytes_, page_bytes_;
  KeyTable table_;
  std::vector<Item> items_;
  std::vector<uint16_t> loads_;  // what is in a bin, and what waits for it
  std::vector<uint32_t> heads_;  // of what waits for a page
  std::vector<uint8_t> values_;
  std::vector<uint32_t> lengths_, free_slots_, free_items_;
  std::array<std::vector<uint8_t>, 2> out_;
  std::vector<uint8_t> old_, new_, held_;
  nb::bytes source_ = nb::bytes("", 0);
  bool building_ = false, found_ = false;
  int64_t fresh_ = 0, count_ = 0, trusted_ = 0, buffered_ = 0, accesses_ = 0, failures_ = 0;
  int64_t peak_load_ = 0, peak_trusted_ = 0, peak_buffered_ = 0, peak_together_ = 0;
  int touched_ = 0;
  uint32_t page_[2] = {0, 0}, drawn_[2] = {0, 0}, item_ = kNone, old_length_ = 0;
  uint64_t key_ = 0;
  Phase phase_ = kIdle;
};

}  // namespace

void bind_oblivious(nb::module_& m) {
  nb::class_<ObliviousBins>(m, "ObliviousBins", "See hasten.kernels.oblivious_bins.")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, nb::bytes>())
      .def_prop_ro("pages", &ObliviousBins::pages)
      .def_prop_ro("page_bytes", &ObliviousBins::page_bytes)
      .def_prop_ro("count", &ObliviousBins::count)
      .def_prop_ro("phase", &ObliviousBins::phase)
      .def("build", &ObliviousBins::build)
      .def("initial", &ObliviousBins::initial)
      .def("built", &ObliviousBins::built)
      .def("begin", &ObliviousBins::begin)
      .def("resume", &ObliviousBins::resume)
      .def("finish", &ObliviousBins::finish, nb::arg(), nb::arg().none(), nb::arg(), nb::arg())
      .def("outgoing", &ObliviousBins::outgoing)
      .def("touched", &ObliviousBins::touched)
      .def("written", &ObliviousBins::written)
      .def("exercise", &ObliviousBins::exercise)
      .def("give", &ObliviousBins::give)
      .def("held", &ObliviousBins::held)
      .def("keys", &ObliviousBins::keys)
      .def("kept", &ObliviousBins::kept)
      .def("statistics", &ObliviousBins::statistics)
      .def("memory", &ObliviousBins::memory);
}

}  // namespace hasten
