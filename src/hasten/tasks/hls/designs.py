"""Functions in C++ for high-level synthesis, without bugs, each with a test bench that prints what it computed.

Kernels as such collections have them: reductions, filters, small linear algebra, image and bit manipulation, buffers in
halves, pointers, tasks in a dataflow region. ``$N`` stands for a size, ``$H`` and ``$Q`` for its half and quarter.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Design:
    """A function without bugs.

    Args:
        name: of the function.
        source: its text.
        bench: statements that call it and print.
        random: arguments whose elements are not read or written once each, in order.
        again: those of them that are read in order after all, only more than once.
    """

    name: str
    source: str
    bench: str
    random: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


# Of designs that go over an array more than once, or read an element twice before the next: bursts after all.
_AGAIN = {
    "histogram": ("counts",),
    "image": ("kernel",),
    "buckets": ("keys",),
    "frames": ("in",),
    "tally": ("votes",),
    "distance": ("a",),
}
_FILL = "for (int i = 0; i < $N; i++) a[i] = {}; "
_SHOW = 'for (int i = 0; i < $N; i++) std::printf("%d ", (int)b[i]);'

# Name: (sizes, random arguments, source, bench).
_DESIGNS: dict[str, tuple[tuple[int, ...], tuple[str, ...], str, str]] = {
    "sum": (
        (32, 48, 64),
        ("a",),
        """
int sum(int a[$N]) {
#pragma HLS INTERFACE mode=ap_memory port=a
#pragma HLS ARRAY_PARTITION variable=a type=cyclic factor=4 dim=1
  int total = 0;
  for (int i = 0; i < $N; i++) {
#pragma HLS UNROLL factor=4
    total += a[i] + a[0];
  }
  return total;
}
""",
        "int a[$N]; " + _FILL.format("3 * i - 7") + 'std::printf("%d\\n", sum(a));',
    ),
    "scale": (
        (40, 56, 64),
        (),
        """
void scale(int in[$N], int out[$N], int gain) {
#pragma HLS INTERFACE mode=axis port=in
#pragma HLS INTERFACE mode=axis port=out
#pragma HLS INTERFACE mode=s_axilite port=gain
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    out[i] = (in[i] * gain) >> 2;
  }
}
""",
        "int a[$N], b[$N]; " + _FILL.format("i * i - 90") + "scale(a, b, 5); " + _SHOW,
    ),
    "matmul": (
        (8, 12, 16),
        ("a", "b"),
        """
void matmul(int a[$N][$N], int b[$N][$N], int c[$N][$N]) {
#pragma HLS INTERFACE mode=ap_memory port=a
#pragma HLS INTERFACE mode=ap_memory port=b
#pragma HLS ARRAY_PARTITION variable=a type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=b type=complete dim=1
  for (int i = 0; i < $N; i++) {
    for (int j = 0; j < $N; j++) {
#pragma HLS PIPELINE II=1
      int total = 0;
      for (int k = 0; k < $N; k++) {
#pragma HLS UNROLL
        total += a[i][k] * b[k][j];
      }
      c[i][j] = total;
    }
  }
}
""",
        "int a[$N][$N], b[$N][$N], c[$N][$N];"
        " for (int i = 0; i < $N * $N; i++) { a[i / $N][i % $N] = i - 20; b[i / $N][i % $N] = 7 * i % 13; }"
        ' matmul(a, b, c); for (int i = 0; i < $N * $N; i++) std::printf("%d ", c[i / $N][i % $N]);',
    ),
    "fir": (
        (48, 60, 80),
        (),
        """
void fir(int in[$N], int out[$N]) {
#pragma HLS INTERFACE mode=axis port=in
  int taps[8] = {1, -2, 3, 4, 4, 3, -2, 1};
  int window[8];
#pragma HLS ARRAY_PARTITION variable=window type=complete dim=1
  for (int i = 0; i < 8; i++) window[i] = 0;
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    for (int k = 7; k > 0; k--) {
#pragma HLS UNROLL
      window[k] = window[k - 1];
    }
    window[0] = in[i];
    int total = 0;
    for (int k = 0; k < 8; k++) {
#pragma HLS UNROLL
      total += window[k] * taps[k];
    }
    out[i] = total >> 3;
  }
}
""",
        "int a[$N], b[$N]; " + _FILL.format("(i * 37) % 101 - 50") + "fir(a, b); " + _SHOW,
    ),
    "bytes": (
        (24, 32, 40),
        (),
        """
int bytes(unsigned char a[$N], int n) {
#pragma HLS INTERFACE mode=ap_memory port=a
#pragma HLS INTERFACE mode=s_axilite port=n
  int total = 0;
  for (int i = 0; i < $N; i += 4) {
#pragma HLS PIPELINE II=2
    total += (unsigned char)a[i] * n;
    total += (unsigned char)a[i + 1] * n;
    total += (unsigned char)a[i + 2] * n;
    total += (unsigned char)a[i + 3] * n;
  }
  return total << 1;
}
""",
        "unsigned char a[$N]; " + _FILL.format("255 - 3 * i") + 'std::printf("%d\\n", bytes(a, 3));',
    ),
    "dot": (
        (32, 40, 64),
        (),
        """
int dot(int a[$N], int w[$N]) {
#pragma HLS INTERFACE mode=bram port=a
#pragma HLS ARRAY_PARTITION variable=a type=cyclic factor=4 dim=1
#pragma HLS ARRAY_PARTITION variable=w type=cyclic factor=4 dim=1
  int total = 0;
  for (int i = 0; i < $N; i += 4) {
#pragma HLS PIPELINE II=1
    total += a[i] * w[i];
    total += a[i + 1] * w[i + 1];
    total += a[i + 2] * w[i + 2];
    total += a[i + 3] * w[i + 3];
  }
  return total >> 1;
}
""",
        "int a[$N], w[$N]; for (int i = 0; i < $N; i++) { a[i] = 5 * i + 2; w[i] = 9 - i; }"
        ' std::printf("%d\\n", dot(a, w));',
    ),
    "histogram": (
        (60, 80, 100),
        ("counts",),
        """
void histogram(int in[$N], int counts[16]) {
#pragma HLS INTERFACE mode=ap_memory port=counts
  int local[16];
#pragma HLS ARRAY_PARTITION variable=local type=complete dim=1
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < 16; i++) local[i] = 0;
    for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
      local[in[i] & 15]++;
    }
    for (int i = 0; i < 16; i++) counts[i] = local[i] << round;
  }
}
""",
        "int a[$N], c[16]; " + _FILL.format("i * i + 3") + "histogram(a, c);"
        ' for (int i = 0; i < 16; i++) std::printf("%d ", c[i]);',
    ),
    "halves": (
        (32, 48, 64),
        (),
        """
void halves(int in[$N], int out[$N]) {
#pragma HLS INTERFACE mode=ap_memory port=in
  int low[$H], high[$H];
#pragma HLS ARRAY_PARTITION variable=low type=cyclic factor=4 dim=1
#pragma HLS ARRAY_PARTITION variable=high type=cyclic factor=4 dim=1
  for (int i = 0; i < $H; i++) low[i] = in[i];
  for (int i = 0; i < $H; i++) high[i] = in[i + $H];
  for (int i = 0; i < $H; i++) {
#pragma HLS UNROLL factor=4
    out[i] = low[i] - high[$H - 1 - i];
    out[i + $H] = high[i] + low[$H - 1 - i];
  }
}
""",
        "int a[$N], b[$N]; " + _FILL.format("i * 11 % 29") + "halves(a, b); " + _SHOW,
    ),
    "count": (
        (20, 30, 50),
        (),
        """
int count(const int *p, int n, int *found) {
#pragma HLS INTERFACE mode=s_axilite port=n
  int left = n;
  while (left > 0) {
#pragma HLS PIPELINE II=1
    if (*p > 10) (*found)++;
    p++;
    left--;
  }
  return *found << 2;
}
""",
        "int a[$N]; int found = 1; " + _FILL.format("3 * i - 8")
        + 'int r = count(a, $N, &found); std::printf("%d %d\\n", r, found);',
    ),
    "checksum": (
        (32, 48, 64),
        (),
        """
int checksum(char data[$N], int seed) {
#pragma HLS INTERFACE mode=axis port=data
#pragma HLS INTERFACE mode=s_axilite port=seed
  int low = seed;
  int high = 0;
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    low = (low + (unsigned char)data[i]) & 4095;
    high = (high + low) & 4095;
  }
  return high << 12 | low;
}
""",
        "char a[$N]; " + _FILL.format("200 - 5 * i") + 'std::printf("%d\\n", checksum(a, 1));',
    ),
    "gray": (
        (24, 32, 40),
        ("red", "green", "blue"),
        """
void gray(char red[$N], char green[$N], char blue[$N], int out[$N]) {
#pragma HLS INTERFACE mode=ap_memory port=red
#pragma HLS INTERFACE mode=ap_memory port=green
#pragma HLS INTERFACE mode=ap_memory port=blue
#pragma HLS INTERFACE mode=axis port=out
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    int j = $N - 1 - i;
    out[i] = (77 * (unsigned char)red[j] + 150 * (unsigned char)green[j] + 29 * (unsigned char)blue[j]) >> 8;
  }
}
""",
        "char a[$N], g[$N], u[$N]; int b[$N];"
        " for (int i = 0; i < $N; i++) { a[i] = 7 * i + 90; g[i] = 180 - i; u[i] = 130; }"
        " gray(a, g, u, b); " + _SHOW,
    ),
    "pack": (
        (16, 24, 32),
        ("in",),
        """
void pack(char in[$N], int out[$Q]) {
#pragma HLS INTERFACE mode=ap_memory port=in
#pragma HLS INTERFACE mode=axis port=out
#pragma HLS ARRAY_PARTITION variable=in type=cyclic factor=4 dim=1
  for (int i = 0; i < $Q; i++) {
#pragma HLS PIPELINE II=1
    int word = (unsigned char)in[4 * i];
    word += (unsigned char)in[4 * i + 1] << 8;
    word += (unsigned char)in[4 * i + 2] << 16;
    out[i] = word;
  }
}
""",
        "char a[$N]; int b[$Q]; " + _FILL.format("200 - 3 * i")
        + 'pack(a, b); for (int i = 0; i < $Q; i++) std::printf("%d ", b[i]);',
    ),
    "samples": (
        (20, 32, 44),
        (),
        """
int samples(short in[$N], int volume) {
#pragma HLS INTERFACE mode=s_axilite port=volume
#pragma HLS ARRAY_PARTITION variable=in type=cyclic factor=2 dim=1
  int total = 0;
  for (int i = 0; i < $N; i += 2) {
#pragma HLS PIPELINE II=1
    total += ((unsigned short)in[i] * volume) >> 4;
    total += ((unsigned short)in[i + 1] * volume) >> 4;
  }
  return total;
}
""",
        "short a[$N]; " + _FILL.format("30000 + 700 * i") + 'std::printf("%d\\n", samples(a, 3));',
    ),
    "transpose": (
        (8, 12, 16),
        ("in",),
        """
void transpose(int in[$N][$N], int out[$N][$N]) {
#pragma HLS INTERFACE mode=ap_memory port=in
#pragma HLS ARRAY_PARTITION variable=in type=complete dim=1
#pragma HLS ARRAY_PARTITION variable=out type=complete dim=2
  for (int i = 0; i < $N; i++) {
    for (int j = 0; j < $N; j++) {
#pragma HLS UNROLL
      out[i][j] = in[j][i];
    }
  }
}
""",
        "int a[$N][$N], c[$N][$N]; for (int i = 0; i < $N * $N; i++) a[i / $N][i % $N] = i * 5 % 37;"
        ' transpose(a, c); for (int i = 0; i < $N * $N; i++) std::printf("%d ", c[i / $N][i % $N]);',
    ),
    "stencil": (
        (32, 48, 64),
        ("in",),
        """
void stencil(int in[$N], int out[$N]) {
#pragma HLS INTERFACE mode=ap_memory port=in
#pragma HLS ARRAY_PARTITION variable=in type=cyclic factor=4 dim=1
  out[0] = in[0];
  out[$N - 1] = in[$N - 1];
  for (int i = 1; i < $N - 1; i++) {
#pragma HLS PIPELINE II=1
    int total = 0;
    for (int k = 0; k < 3; k++) {
#pragma HLS UNROLL
      total += in[i + k - 1] << k;
    }
    out[i] = total >> 2;
  }
}
""",
        "int a[$N], b[$N]; " + _FILL.format("i * 13 % 31 + 4") + "stencil(a, b); " + _SHOW,
    ),
    "image": (
        (8, 12, 16),
        ("in", "kernel"),
        """
void image(int in[$N][$N], int kernel[3][3], int out[$N][$N]) {
#pragma HLS INTERFACE mode=ap_memory port=in
#pragma HLS INTERFACE mode=ap_memory port=kernel
#pragma HLS ARRAY_PARTITION variable=kernel type=complete dim=2
  for (int i = 0; i < $N - 2; i++) {
    for (int j = 0; j < $N - 2; j++) {
      int total = 0;
      for (int y = 0; y < 3; y++) {
#pragma HLS PIPELINE II=2
        for (int x = 0; x < 3; x++) {
#pragma HLS UNROLL
          total += in[i + y][j + x] * kernel[y][x];
        }
      }
      out[i][j] = total >> 4;
    }
  }
}
""",
        "int a[$N][$N], k[3][3] = {{1, 2, 1}, {2, 4, 2}, {1, 2, 1}}, c[$N][$N] = {};"
        " for (int i = 0; i < $N * $N; i++) a[i / $N][i % $N] = i * 17 % 101;"
        ' image(a, k, c); for (int i = 0; i < $N * $N; i++) std::printf("%d ", c[i / $N][i % $N]);',
    ),
    "rowsums": (
        (8, 12, 16),
        ("in",),
        """
void rowsums(int in[$N][$N], int out[$N]) {
#pragma HLS INTERFACE mode=ap_memory port=in
  int part[4];
#pragma HLS ARRAY_PARTITION variable=part type=complete dim=1
  for (int round = 0; round < $N; round++) {
    for (int i = 0; i < 4; i++) part[i] = 0;
    for (int j = 0; j < $N; j++) {
#pragma HLS PIPELINE II=1
      part[j & 3] += in[j][round];
    }
    int total = 0;
    for (int i = 0; i < 4; i++) {
#pragma HLS UNROLL
      total += part[i];
    }
    out[round] = total;
  }
}
""",
        "int a[$N][$N], b[$N]; for (int i = 0; i < $N * $N; i++) a[i / $N][i % $N] = i * 7 % 41;"
        " rowsums(a, b); " + _SHOW,
    ),
    "buckets": (
        (36, 48, 60),
        ("keys",),
        """
void buckets(int keys[$N], int sizes[8], int rounds) {
#pragma HLS INTERFACE mode=ap_memory port=keys
#pragma HLS INTERFACE mode=ap_memory port=sizes
#pragma HLS INTERFACE mode=s_axilite port=rounds
  int count[8];
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 8; i++) count[i] = 0;
    for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=2
      count[(keys[i] >> round) & 7]++;
    }
  }
  for (int i = 0; i < 8; i++) sizes[i] = count[i] * rounds;
}
""",
        "int a[$N], c[8]; " + _FILL.format("i * i * 3 + 5 * i") + "buckets(a, c, 3);"
        ' for (int i = 0; i < 8; i++) std::printf("%d ", c[i]);',
    ),
    "frames": (
        (24, 32, 48),
        ("in",),
        """
void frames(int in[$N], int out[4]) {
#pragma HLS INTERFACE mode=ap_memory port=in
#pragma HLS INTERFACE mode=axis port=out
  int energy[2];
#pragma HLS ARRAY_PARTITION variable=energy type=complete dim=1
  for (int round = 0; round < 4; round++) {
    for (int i = 0; i < 2; i++) energy[i] = 0;
    for (int i = 0; i < $Q; i++) {
#pragma HLS PIPELINE II=1
      energy[i & 1] += in[round * $Q + i] * in[round * $Q + i];
    }
    out[round] = energy[0] - (energy[1] >> 1);
  }
}
""",
        "int a[$N]; int c[4]; " + _FILL.format("i * 19 % 23 - 9") + "frames(a, c);"
        ' for (int i = 0; i < 4; i++) std::printf("%d ", c[i]);',
    ),
    "tally": (
        (30, 45, 60),
        ("votes",),
        """
int tally(int votes[$N], int least) {
#pragma HLS INTERFACE mode=ap_memory port=votes
#pragma HLS INTERFACE mode=s_axilite port=least
  int names[5];
  int won = 0;
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < 5; i++) names[i] = 0;
    for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
      names[votes[i] % 5] += 1 + round;
    }
    for (int i = 0; i < 5; i++) {
#pragma HLS UNROLL
      won = (won * 3 + names[i] * least) & 65535;
    }
  }
  return won;
}
""",
        "int a[$N]; " + _FILL.format("i * i % 7") + 'std::printf("%d\\n", tally(a, $N / 5));',
    ),
    "pingpong": (
        (32, 48, 64),
        (),
        """
void pingpong(int in[$N], int out[$N]) {
#pragma HLS INTERFACE mode=axis port=out
  int ping[$H], pong[$H];
#pragma HLS ARRAY_PARTITION variable=ping type=cyclic factor=2 dim=1
  for (int i = 0; i < $H; i++) {
#pragma HLS UNROLL factor=2
    ping[i] = in[i] * 3;
  }
  for (int i = 0; i < $H; i++) pong[i] = in[i + $H] * 5;
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    out[i] = i < $H ? ping[i] : pong[i - $H];
  }
}
""",
        "int a[$N], b[$N]; " + _FILL.format("i * 3 + 1") + "pingpong(a, b); " + _SHOW,
    ),
    "parity": (
        (32, 48, 64),
        ("in",),
        """
void parity(int in[$N], int out[$H]) {
#pragma HLS INTERFACE mode=ap_memory port=in
  int even[$H], odd[$H];
#pragma HLS ARRAY_PARTITION variable=even type=cyclic factor=4 dim=1
  for (int i = 0; i < $H; i++) even[i] = in[2 * i];
  for (int i = 0; i < $H; i++) odd[i] = in[2 * i + 1];
  for (int i = 0; i < $H; i++) {
#pragma HLS UNROLL factor=4
    out[i] = (even[i] << 1) - odd[i];
  }
}
""",
        "int a[$N], b[$H]; " + _FILL.format("i * 23 % 57")
        + 'parity(a, b); for (int i = 0; i < $H; i++) std::printf("%d ", b[i]);',
    ),
    "butterfly": (
        (16, 32, 48),
        ("x",),
        """
void butterfly(int x[$N], int out[$N]) {
#pragma HLS INTERFACE mode=ap_memory port=x
  int left[$H], right[$H];
#pragma HLS ARRAY_PARTITION variable=left type=block factor=2 dim=1
#pragma HLS ARRAY_PARTITION variable=right type=block factor=2 dim=1
  for (int i = 0; i < $H; i++) left[i] = x[i];
  for (int i = 0; i < $H; i++) right[i] = x[$N - 1 - i];
  for (int i = 0; i < $H; i++) {
#pragma HLS PIPELINE II=1
    out[i] = left[i] + right[i];
    out[$H + i] = left[i] - right[i];
  }
}
""",
        "int a[$N], b[$N]; " + _FILL.format("i * i % 43") + "butterfly(a, b); " + _SHOW,
    ),
    "overlap": (
        (24, 32, 40),
        (),
        """
void overlap(int in[$N], int out[$H], int weight) {
#pragma HLS INTERFACE mode=s_axilite port=weight
  int front[$H], back[$H];
#pragma HLS ARRAY_PARTITION variable=front type=cyclic factor=2 dim=1
  for (int i = 0; i < $H; i++) front[i] = in[i];
  for (int i = 0; i < $H; i++) back[i] = in[i + $H];
  for (int i = 0; i < $H; i++) {
#pragma HLS UNROLL factor=2
    out[i] = (front[i] * weight + back[i] * (16 - weight)) >> 4;
  }
}
""",
        "int a[$N], b[$H]; " + _FILL.format("i * 31 % 83")
        + 'overlap(a, b, 5); for (int i = 0; i < $H; i++) std::printf("%d ", b[i]);',
    ),
    "saturate": (
        (24, 36, 48),
        (),
        """
int saturate(int in[$N], int out[$N], int limit, int *clipped) {
#pragma HLS INTERFACE mode=axis port=in
#pragma HLS INTERFACE mode=axis port=out
#pragma HLS INTERFACE mode=s_axilite port=limit
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    int value = in[i];
    if (value > limit) (*clipped)++;
    out[i] = value > limit ? limit : value;
  }
  return *clipped << 1;
}
""",
        "int a[$N], b[$N]; int clipped = 2; " + _FILL.format("i * 9 % 50")
        + 'int r = saturate(a, b, 25, &clipped); std::printf("%d %d ", r, clipped); ' + _SHOW,
    ),
    "digits": (
        (20, 28, 36),
        (),
        """
int digits(const char *text, int n, int *total) {
#pragma HLS INTERFACE mode=s_axilite port=n
  int left = n;
  while (left > 0) {
#pragma HLS PIPELINE II=1
    if (*text >= '0' && *text <= '9') (*total)++;
    text++;
    left--;
  }
  return *total;
}
""",
        "char a[$N]; int total = 5; " + _FILL.format("40 + i * 3 % 25")
        + 'int r = digits(a, $N, &total); std::printf("%d %d\\n", r, total);',
    ),
    "peaks": (
        (30, 42, 60),
        ("in",),
        """
void peaks(int in[$N], int *high, int *low) {
#pragma HLS INTERFACE mode=ap_memory port=in
  for (int i = 1; i < $N - 1; i++) {
#pragma HLS PIPELINE II=2
    if (in[i] > in[i - 1] && in[i] > in[i + 1]) (*high)++;
    if (in[i] < in[i - 1] && in[i] < in[i + 1]) (*low)++;
  }
}
""",
        "int a[$N]; int high = 0, low = 0; " + _FILL.format("i * 29 % 17")
        + 'peaks(a, &high, &low); std::printf("%d %d\\n", high, low);',
    ),
    "runs": (
        (24, 40, 56),
        (),
        """
int runs(const int *p, int n, int *changes) {
#pragma HLS INTERFACE mode=s_axilite port=n
  int last = *p;
  int left = n - 1;
  while (left > 0) {
#pragma HLS PIPELINE II=1
    p++;
    if (*p != last) (*changes)++;
    last = *p;
    left--;
  }
  return *changes;
}
""",
        "int a[$N]; int changes = 0; " + _FILL.format("i * 5 / 7 % 3")
        + 'int r = runs(a, $N, &changes); std::printf("%d %d\\n", r, changes);',
    ),
    "stages": (
        (24, 36, 48),
        (),
        """
void stages_load(int in[$N], int mid[$N]) {
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    mid[i] = in[i] * 3 + 1;
  }
}
void stages_store(int mid[$N], int out[$N]) {
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    out[i] = mid[i] >> 1;
  }
}
void stages(int in[$N], int out[$N]) {
#pragma HLS INTERFACE mode=axis port=in
#pragma HLS INTERFACE mode=axis port=out
#pragma HLS DATAFLOW
  int mid[$N];
  stages_load(in, mid);
  stages_store(mid, out);
}
""",
        "int a[$N], b[$N]; " + _FILL.format("i * 4 - 11") + "stages(a, b); " + _SHOW,
    ),
    "chain": (
        (16, 24, 32),
        (),
        """
void chain_gain(int in[$N], int out[$N], int gain) {
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    out[i] = in[i] * gain;
  }
}
void chain_sum(int in[$N], int out[$N]) {
  int total = 0;
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    total += in[i];
    out[i] = total;
  }
}
void chain_cut(int in[$N], int out[$N]) {
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    out[i] = (in[i] >> 3) & 255;
  }
}
void chain(int in[$N], int out[$N], int gain) {
#pragma HLS INTERFACE mode=axis port=in
#pragma HLS INTERFACE mode=axis port=out
#pragma HLS INTERFACE mode=s_axilite port=gain
#pragma HLS DATAFLOW
  int first[$N];
  int second[$N];
  chain_gain(in, first, gain);
  chain_sum(first, second);
  chain_cut(second, out);
}
""",
        "int a[$N], b[$N]; " + _FILL.format("i * 7 % 19") + "chain(a, b, 6); " + _SHOW,
    ),
    "lookup": (
        (28, 40, 52),
        ("table",),
        """
void lookup(int in[$N], int table[32], int out[$N]) {
#pragma HLS INTERFACE mode=axis port=in
#pragma HLS INTERFACE mode=ap_memory port=table
#pragma HLS INTERFACE mode=axis port=out
  for (int i = 0; i < $N; i++) {
#pragma HLS PIPELINE II=1
    out[i] = table[in[i] & 31];
  }
}
""",
        "int a[$N], t[32], b[$N]; for (int i = 0; i < 32; i++) t[i] = i * i - 7; " + _FILL.format("i * 11")
        + "lookup(a, t, b); " + _SHOW,
    ),
    "polynomial": (
        (20, 32, 44),
        (),
        """
int polynomial(int x[$N], int w[$N]) {
#pragma HLS ARRAY_PARTITION variable=x type=cyclic factor=2 dim=1
#pragma HLS ARRAY_PARTITION variable=w type=cyclic factor=2 dim=1
  int total = 0;
  for (int i = 0; i < $N; i += 4) {
#pragma HLS PIPELINE II=2
    total += x[i] * x[i] * w[i];
    total += x[i + 1] * x[i + 1] * w[i + 1];
    total += x[i + 2] * x[i + 2] * w[i + 2];
    total += x[i + 3] * x[i + 3] * w[i + 3];
  }
  return total;
}
""",
        "int a[$N], w[$N]; for (int i = 0; i < $N; i++) { a[i] = i % 9 + 1; w[i] = i % 5 - 1; }"
        ' std::printf("%d\\n", polynomial(a, w));',
    ),
    "distance": (
        (16, 24, 32),
        ("a", "b"),
        """
int distance(int a[$N], int b[$N], int shift) {
#pragma HLS INTERFACE mode=ap_memory port=a
#pragma HLS INTERFACE mode=ap_memory port=b
#pragma HLS INTERFACE mode=s_axilite port=shift
  int best = 1 << 30;
  for (int s = 0; s < 4; s++) {
    int total = 0;
    for (int i = 0; i < $N - 4; i++) {
#pragma HLS PIPELINE II=1
      int gap = a[i] - b[i + s];
      total += gap * gap;
    }
    best = total < best ? total : best;
  }
  return best >> shift;
}
""",
        "int a[$N], b[$N]; for (int i = 0; i < $N; i++) { a[i] = i * 13 % 27; b[i] = (i + 25) * 13 % 27 + 1; }"
        ' std::printf("%d\\n", distance(a, b, 1));',
    ),
}  # fmt: skip


def designs(sizes: int = 1) -> list[Design]:
    """The functions, each at its first ``sizes`` sizes of three."""
    found = []
    for name, (ns, random, source, bench) in _DESIGNS.items():
        for n in ns[:sizes]:
            text, called = (_sized(t, n) for t in (source.strip() + "\n", bench))
            found.append(Design(name, text, called, random, _AGAIN.get(name, ())))
    return found


def _sized(text: str, n: int) -> str:
    return text.replace("$N", str(n)).replace("$H", str(n // 2)).replace("$Q", str(n // 4))
