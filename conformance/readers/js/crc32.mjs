// CRC-32 of zlib and PNG (container.md), four bytes a step.
const T = [0, 1, 2, 3].map(() => new Int32Array(256));
for (let i = 0; i < 256; i++) {
  let c = i;
  for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
  T[0][i] = c;
}
for (let i = 0; i < 256; i++) {
  for (let t = 1; t < 4; t++) T[t][i] = (T[t - 1][i] >>> 8) ^ T[0][T[t - 1][i] & 255];
}

export function crc32(bytes) {
  const [a, b, c, d] = T;
  let crc = -1;
  let i = 0;
  for (const end = bytes.length - 3; i < end; i += 4) {
    crc ^= bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
    crc = d[crc & 255] ^ c[(crc >>> 8) & 255] ^ b[(crc >>> 16) & 255] ^ a[crc >>> 24];
  }
  for (; i < bytes.length; i++) crc = (crc >>> 8) ^ a[(crc ^ bytes[i]) & 255];
  return ~crc >>> 0;
}
