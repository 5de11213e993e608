// SHA-256 (FIPS 180-4), synchronous: what browsers have is asynchronous.

// The constants are the first 32 bits of the fractional parts of square and cube roots of primes, computed in integers.
function root(value, power) {
  let low = 0n;
  let high = value + 1n;
  while (high - low > 1n) {
    const mid = (low + high) >> 1n;
    if (mid ** power <= value) low = mid; else high = mid;
  }
  return low;
}
const K = new Int32Array(64);
const H0 = new Int32Array(8);
for (let n = 2n, count = 0; count < 64; n++) {
  let prime = true;
  for (let d = 2n; d * d <= n; d++) if (n % d === 0n) { prime = false; break; }
  if (!prime) continue;
  K[count] = Number(BigInt.asIntN(32, root(n << 96n, 3n)));
  if (count < 8) H0[count] = Number(BigInt.asIntN(32, root(n << 64n, 2n)));
  count++;
}

const W = new Int32Array(64);

export class Sha256 {
  constructor() {
    this.h = H0.slice();
    this.block = new Uint8Array(64);
    this.filled = 0;
    this.total = 0;
  }

  update(bytes) {
    let at = 0;
    this.total += bytes.length;
    if (this.filled) {
      at = Math.min(64 - this.filled, bytes.length);
      this.block.set(bytes.subarray(0, at), this.filled);
      this.filled += at;
      if (this.filled < 64) return this;
      this.#compress(this.block, 0);
      this.filled = 0;
    }
    for (; at + 64 <= bytes.length; at += 64) this.#compress(bytes, at);
    this.block.set(bytes.subarray(at), 0);
    this.filled = bytes.length - at;
    return this;
  }

  digest() {
    const bits = BigInt(this.total) * 8n;
    const tail = new Uint8Array((this.filled < 56 ? 64 : 128) - this.filled);
    tail[0] = 0x80;
    new DataView(tail.buffer).setBigUint64(tail.length - 8, bits);
    this.update(tail);
    const out = new Uint8Array(32);
    const view = new DataView(out.buffer);
    this.h.forEach((word, i) => view.setInt32(4 * i, word));
    return out;
  }

  hex() {
    return hex(this.digest());
  }

  #compress(bytes, at) {
    const H = this.h;
    for (let i = 0; i < 16; i++, at += 4) {
      W[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
    }
    for (let i = 16; i < 64; i++) {
      const x = W[i - 15];
      const y = W[i - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      W[i] = (W[i - 16] + s0 + W[i - 7] + s1) | 0;
    }
    let a = H[0], b = H[1], c = H[2], d = H[3], e = H[4], f = H[5], g = H[6], h = H[7];
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + W[i]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
    }
    H[0] += a; H[1] += b; H[2] += c; H[3] += d; H[4] += e; H[5] += f; H[6] += g; H[7] += h;
  }
}

const DIGITS = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, '0'));

export function hex(bytes) {
  let out = '';
  for (let i = 0; i < bytes.length; i++) out += DIGITS[bytes[i]];
  return out;
}

export function unhex(text) {
  return Uint8Array.from({ length: text.length / 2 }, (_, i) => parseInt(text.slice(2 * i, 2 * i + 2), 16));
}

export function sha256hex(bytes) {
  return new Sha256().update(bytes).hex();
}
