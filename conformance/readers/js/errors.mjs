// The one exception a refusal is reported with: [error.code], [error.text], and the table of codes of errors.md.

const CLASSES = {
  framing: 'FramingError', wire: 'ManifestError', manifest: 'ManifestError', storage: 'ManifestError',
  integrity: 'IntegrityError', payload: 'PayloadError', unsupported: 'UnsupportedError', limit: 'LimitError',
  base: 'BaseMismatchError', checkpoint: 'CheckpointError', input: 'InputError', output: 'OutputError',
  usage: 'UsageError',
};

const NAMES = {
  framing: 'magic truncated trailing-bytes preamble-crc reserved header-length',
  wire: 'truncated trailing type not-shortest key-type key-order utf8',
  manifest: 'missing-key unknown-key type value order name shape tensor alias components parameter file-name',
  storage: 'segments chunk-bytes chunk-table chunk-length data-length',
  integrity: 'header manifest storage chunk content result source-changed',
  payload: 'frame padding-bits code position scale nonfinite overflow value layout',
  unsupported: 'version encoding codec dtype checkpoint operation',
  limit: 'exceeded',
  base: 'missing extra kind content',
  checkpoint: 'missing header layout name duplicate',
  input: 'failed',
  output: 'failed',
  usage: 'argument',
};

export const CODES = new Map();
for (const [first, rest] of Object.entries(NAMES)) {
  for (const word of rest.split(' ')) CODES.set(`${first}.${word}`, CLASSES[first]);
}

/** [error.text]: printable ASCII, at most 500 characters; everything else is escaped. */
export function printable(text) {
  let out = '';
  for (const c of String(text).slice(0, 600)) {
    const n = c.codePointAt(0);
    out += n >= 0x20 && n <= 0x7e ? c : `\\u{${n.toString(16)}}`;
    if (out.length > 500) return `${out.slice(0, 497)}...`;
  }
  return out;
}

export class Refusal extends Error {
  /** `code` is one of errors.md, `where` the place ('' if there is none). */
  constructor(code, message, where = '') {
    super(printable(where ? `${where}: ${message}` : message));
    this.name = 'Refusal';
    this.code = code;
    this.class = CODES.get(code);
    this.where = printable(where);
  }
}

export function refuse(code, message, where) {
  throw new Refusal(code, message, where);
}
