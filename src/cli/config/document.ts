/**
 * Reads a YAML document against a shape, and finds everything that is wrong with it at once: each problem has its
 * line and column, the path of the key, and the reason.
 *
 * A shape is built of readers. A reader gets an item, which is a node of the document with its path, and gives what
 * it stands for, or nothing where it has reported a problem. So the first problem ends nothing, and whoever puts
 * values together knows which of them are missing.
 *
 * JSON is YAML. Anchors and aliases work for whole values; merge keys (`<<`) do not. Values are taken as they are
 * written, not as YAML types them: `0 2 * * *`, `70%` and `10G` need no quotes, `7` may have some.
 */

import {
  type Document,
  isAlias,
  isMap,
  isNode,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  parseDocument,
} from 'yaml';
import { assert, messageOf } from '../../base/index.ts';
import { UsageError } from '../exit.ts';

/** One thing that is wrong. */
export interface ConfigProblem {
  /** Both count from 1. */
  readonly line: number;
  readonly column: number;
  /** Such as `volumes[0].policies[1].when`; empty for the document. */
  readonly path: string;
  readonly reason: string;
}

/** A value of the document and where it is. */
export class Item {
  readonly path: string;
  readonly #reading: Reading;
  readonly #node: Node | null | undefined;
  readonly #offset: number;

  constructor(reading: Reading, node: Node | null | undefined, path: string, offset: number) {
    this.#reading = reading;
    this.#node = isAlias(node) ? node.resolve(reading.document) : node;
    this.path = path;
    // What an alias stands for is somewhere else; people look where it is used.
    this.#offset = node?.range?.[0] ?? offset;
  }

  /** Reports a problem here. */
  wrong(reason: string): undefined {
    this.#reading.report(this.#offset, this.path, reason);
    return undefined;
  }

  /** What was written, of a value that is no list and no map; undefined for those and for nothing. */
  get text(): string | undefined {
    const node = this.#node;
    if (!isScalar(node) || node.value === null || node.value === undefined) return undefined;
    return typeof node.value === 'string' ? node.value : (node.source ?? JSON.stringify(node.value));
  }

  /** What it is, for a sentence. */
  get kind(): string {
    if (isMap(this.#node)) return 'a map';
    if (isSeq(this.#node)) return 'a list';
    return this.text === undefined ? 'empty' : `'${this.text}'`;
  }

  /** The members of a list; undefined where it is none. */
  get members(): readonly Item[] | undefined {
    if (!isSeq(this.#node)) return undefined;
    return this.#node.items.map(
      (node, index) => new Item(this.#reading, asNode(node), `${this.path}[${index}]`, this.#offset),
    );
  }

  /** Keys and values of a map; undefined where it is none. */
  get entries(): readonly Entry[] | undefined {
    if (!isMap(this.#node)) return undefined;
    return this.#node.items.map(({ key, value }) => {
      const keyNode = asNode(key);
      const name = isScalar(keyNode) ? (keyNode.source ?? JSON.stringify(keyNode.value)) : '?';
      const path = this.path === '' ? name : `${this.path}.${name}`;
      const offset = keyNode?.range?.[0] ?? this.#offset;
      return {
        name,
        key: new Item(this.#reading, keyNode, path, offset),
        value: new Item(this.#reading, asNode(value), path, offset),
      };
    });
  }
}

interface Entry {
  readonly name: string;
  /** Where the key is. */
  readonly key: Item;
  readonly value: Item;
}

interface Reading {
  readonly document: Document;
  readonly report: (offset: number, path: string, reason: string) => void;
}

/** The parser makes nodes only; its types allow for documents that were put together by hand. */
function asNode(value: unknown): Node | null {
  return isNode(value) ? value : null;
}

/** What an item stands for; undefined where a problem was reported. */
export type Reader<T> = (item: Item) => T | undefined;

/**
 * Reads a document.
 *
 * @param check looks at what was read as a whole, where every part could be read, and reports what is wrong with it.
 * @returns the value, or all problems in the order of their lines; never both.
 */
export function readDocument<T>(
  text: string,
  reader: Reader<T>,
): { readonly value: T } | { readonly problems: readonly ConfigProblem[] } {
  const lines = new LineCounter();
  const problems: ConfigProblem[] = [];
  const report = (offset: number, path: string, reason: string): void => {
    const { line, col } = lines.linePos(offset);
    problems.push({ line: Math.max(1, line), column: Math.max(1, col), path, reason });
  };
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, stringKeys: true });
  for (const { pos, message } of [...document.errors, ...document.warnings]) report(pos[0], '', message);
  const item = new Item({ document, report }, document.contents, '', 0);
  // What the parser could not make sense of is no use to anybody else.
  const value = problems.length === 0 ? reader(item) : undefined;
  if (problems.length === 0 && value !== undefined) return { value };
  return { problems: problems.sort((one, other) => one.line - other.line || one.column - other.column) };
}

/** One value, given to `parse` as it is written, which throws a `UsageError` for a wrong one. */
export function scalar<T>(wanted: string, parse: (text: string, item: Item) => T): Reader<T> {
  return (item) => {
    const { text } = item;
    if (text === undefined) return item.wrong(`It is ${item.kind}, wanted ${wanted}`);
    try {
      return parse(text, item);
    } catch (error) {
      if (error instanceof UsageError) return item.wrong(messageOf(error));
      throw error;
    }
  };
}

/** Some text that is not empty. */
export function someText(wanted: string): Reader<string> {
  return scalar(wanted, (value) => {
    if (value === '') throw new UsageError(`It is empty, wanted ${wanted}`);
    return value;
  });
}

/** `true` or `false`. */
export const flag: Reader<boolean> = scalar('true or false', (value) => {
  if (value === 'true' || value === 'false') return value === 'true';
  throw new UsageError(`It is '${value}', wanted true or false`);
});

/** A whole number within the range, which is inclusive. */
export function count({ min, max }: { readonly min: number; readonly max: number }): Reader<number> {
  const wanted = `a whole number from ${min} to ${max}`;
  return scalar(wanted, (value) => {
    const number = /^[0-9]{1,15}$/.test(value) ? Number(value) : Number.NaN;
    if (number >= min && number <= max) return number;
    throw new UsageError(`It is '${value}', wanted ${wanted}`);
  });
}

export function oneOf<const T extends string>(choices: readonly T[]): Reader<T> {
  const wanted = choices.length === 2 ? choices.join(' or ') : `one of ${choices.join(', ')}`;
  return scalar(wanted, (value) => {
    const choice = choices.find((one) => one === value);
    if (choice !== undefined) return choice;
    const near = nearest(value, choices);
    throw new UsageError(
      `It is '${value}', wanted ${wanted}${near === undefined ? '' : `; is ${near} meant?`}`,
    );
  });
}

/** A list of at most so many members. */
export function listOf<T>(reader: Reader<T>, countMax: number): Reader<readonly T[]> {
  return (item) => {
    const { members } = item;
    if (members === undefined) return item.wrong(`It is ${item.kind}, wanted a list`);
    if (members.length > countMax) {
      return item.wrong(`It has ${members.length} members, wanted at most ${countMax}`);
    }
    return allOf(members.map((member) => reader(member)));
  };
}

/** A list, or one value for a list of it alone. */
export function oneOrMore<T>(reader: Reader<T>, countMax: number): Reader<readonly T[]> {
  const list = listOf(reader, countMax);
  return (item) => (item.members === undefined ? allOf([reader(item)]) : list(item));
}

/** A map from names of the user's choice. */
export function mapOf<T>(reader: (name: string, item: Item) => T | undefined): Reader<readonly T[]> {
  return (item) => {
    const { entries } = item;
    if (entries === undefined) return item.wrong(`It is ${item.kind}, wanted a map`);
    return allOf(entries.map(({ name, value }) => reader(name, value)));
  };
}

function allOf<T>(values: readonly (T | undefined)[]): readonly T[] | undefined {
  const there = values.filter((value) => value !== undefined);
  return there.length === values.length ? there : undefined;
}

export interface Field<T> {
  readonly reader: Reader<T>;
  readonly isRequired: boolean;
}

/** A key that may be left out. */
export function optional<T>(reader: Reader<T>): Field<T> {
  return { reader, isRequired: false };
}

/** A key that must be there. */
export function required<T>(reader: Reader<T>): Field<T> {
  return { reader, isRequired: true };
}

type Fields = Readonly<Record<string, Field<unknown>>>;

/** What was read of a map with known keys. */
export type Values<F extends Fields> = { readonly [K in keyof F]?: F[K] extends Field<infer T> ? T : never };

export interface MapRead<F extends Fields> {
  readonly values: Values<F>;
  /** The items of the keys that are there, for further problems; the map itself for one that is not. */
  readonly at: (key: keyof F & string) => Item;
  readonly has: (key: keyof F & string) => boolean;
  /** Whether every key that is there could be read, and every one that must be there is. */
  readonly isSound: boolean;
}

/** A map with known keys; every other one is a problem. `build` makes of it what it stands for. */
export function record<F extends Fields, T>(
  fields: F,
  build: (read: MapRead<F>, item: Item) => T | undefined,
): Reader<T> {
  return (item) => {
    const { entries } = item;
    const names = Object.keys(fields);
    if (entries === undefined) {
      return item.wrong(`It is ${item.kind}, wanted a map with ${listed(names)}`);
    }
    const values: Record<string, unknown> = {};
    const items = new Map<string, Item>();
    let isSound = true;
    for (const { name, key, value } of entries) {
      const field = Object.hasOwn(fields, name) ? fields[name] : undefined;
      if (field === undefined) {
        isSound = false;
        key.wrong(unknownKey(name, names));
        continue;
      }
      items.set(name, value);
      values[name] = field.reader(value);
      if (values[name] === undefined) isSound = false;
    }
    for (const [name, { isRequired }] of Object.entries(fields)) {
      if (!isRequired || items.has(name)) continue;
      isSound = false;
      item.wrong(`${name} is missing, wanted here`);
    }
    const at = (key: string): Item => items.get(key) ?? item;
    assert(isOf(fields, values), 'A key that is not known was read');
    return build({ values, at, has: (key) => items.has(key), isSound }, item);
  };
}

/** Each value is what the reader of its field gave. */
function isOf<F extends Fields>(fields: F, values: Readonly<Record<string, unknown>>): values is Values<F> {
  return Object.keys(values).every((name) => Object.hasOwn(fields, name));
}

function unknownKey(name: string, names: readonly string[]): string {
  const near = nearest(name, names);
  if (near !== undefined) return `The key is not known, did you mean ${near}?`;
  return `The key is not known, wanted ${listed(names)}`;
}

function listed(names: readonly string[]): string {
  return names.length === 1 ? `${names[0]}` : `one of ${names.join(', ')}`;
}

/** What was most likely meant; undefined where nothing is near. */
function nearest(word: string, choices: readonly string[]): string | undefined {
  const plain = (one: string): string => one.toLowerCase().replace(/[-_ ]/g, '');
  const [best] = choices
    .map((choice) => ({ choice, distance: distanceOf(plain(word), plain(choice)) }))
    .sort((one, other) => one.distance - other.distance);
  if (best === undefined) return undefined;
  return best.distance <= Math.min(2, Math.floor(best.choice.length / 2)) ? best.choice : undefined;
}

/** How many letters have to be changed, taken or added to make one of the other (Levenshtein). */
function distanceOf(one: string, other: string): number {
  // A word that is much longer than any key is none that was mistyped.
  if (one.length > 64) return one.length;
  let row = Array.from({ length: other.length + 1 }, (_, index) => index);
  for (const [at, letter] of one.split('').entries()) {
    const next = [at + 1];
    for (const [index, wanted] of other.split('').entries()) {
      const changed = (row[index] ?? 0) + (letter === wanted ? 0 : 1);
      next.push(Math.min(changed, (row[index + 1] ?? 0) + 1, (next[index] ?? 0) + 1));
    }
    row = next;
  }
  return row[other.length] ?? 0;
}
