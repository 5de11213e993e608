// Strict JSON (manifest.md, Layout): what the header of a safetensors file and an index are written in.
import { refuse } from './errors.mjs';

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const WORDS = [['true', true], ['false', false], ['null', null]];
const DEEPEST = 500;
const where = 'JSON';
const wrong = (what) => refuse('checkpoint.header', what, where);

/** The value of bytes: an object as a Map, a number in digits alone as a BigInt, any other number as a Number. */
export function parseJson(bytes) {
  let text;
  try {
    text = UTF8.decode(bytes);
  } catch {
    wrong('not UTF-8');
  }
  let at = 0;
  const space = () => { while (at < text.length && ' \t\n\r'.includes(text[at])) at++; };
  const take = (c) => {
    if (text[at] !== c) wrong(`'${c}' expected at character ${at}`);
    at++;
  };
  const string = () => {
    if (text[at] !== '"') wrong(`a string expected at character ${at}`);
    let end = at + 1;
    while (end < text.length && text[end] !== '"') end += text[end] === '\\' ? 2 : 1;
    let value;
    try {
      value = JSON.parse(text.slice(at, end + 1));
    } catch {
      wrong(`a bad string at character ${at}`);
    }
    if (/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(value)) wrong('half a character');
    at = end + 1;
    return value;
  };
  const list = (open, close, item) => {
    take(open);
    const out = [];
    space();
    if (text[at] === close) { at++; return out; }
    for (;;) {
      space();
      out.push(item());
      space();
      if (text[at] === close) { at++; return out; }
      take(',');
    }
  };
  const value = (depth) => {
    if (depth > DEEPEST) refuse('limit.exceeded', `nested more than ${DEEPEST} deep`, where);    // [reader.limits]
    if (text[at] === '"') return string();
    if (text[at] === '[') return list('[', ']', () => value(depth + 1));
    if (text[at] === '{') return object(depth);
    for (const [word, meant] of WORDS) {
      if (text.startsWith(word, at)) { at += word.length; return meant; }
    }
    NUMBER.lastIndex = at;
    const digits = NUMBER.exec(text);
    if (!digits) wrong(`no value at character ${at}`);
    at += digits[0].length;
    return /^[0-9]{1,40}$/.test(digits[0]) ? BigInt(digits[0]) : Number(digits[0]);
  };
  const object = (depth) => {
    const pairs = list('{', '}', () => {
      const key = string();
      space();
      take(':');
      space();
      return [key, value(depth + 1)];
    });
    const map = new Map(pairs);
    if (map.size !== pairs.length) refuse('checkpoint.duplicate', 'a key comes twice', where);
    return map;
  };
  space();
  const out = value(0);
  space();
  if (at !== text.length) wrong('something after the value');
  return out;
}
