/**
 * The remap file: a remap table and its targets as JSON, for people and scripts. FORMAT.md describes it.
 *
 * Strict on purpose: unknown keys, wrong types and odd numbers are refused, because a typing error in this
 * file decides which bytes of which disk are overwritten. Every error names the file, the place in the
 * document and the value found there.
 */

import { readFile, stat } from 'node:fs/promises';
import { GIB, KIB, LIMITS, messageOf, MIB, parseSize } from '../base/index.ts';
import { isRestoreError, RestoreError } from './errors.ts';
import { type RemapRow, RemapTable } from './remap-table.ts';
import type { TargetRequest } from './targets.ts';

/** A target as a remap file names it. */
export interface RemapFileTarget {
  readonly name: string;
  /** Path or URI; left out where the command line gives it. */
  readonly uri?: string;
  /** The size of the file to create when there is none. */
  readonly sizeBytes?: number;
}

export interface RemapFile {
  readonly targets: readonly RemapFileTarget[];
  readonly table: RemapTable;
}

const FORMAT = 'cowbell-remap';
const VERSION = 0;

/**
 * Reads and checks a remap file.
 *
 * @throws {RestoreError} `bad-remap-file` where the file cannot be read or is not as FORMAT.md says.
 */
export async function readRemapFile(path: string): Promise<RemapFile> {
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > LIMITS.remapFileBytesMax) {
      throw bad(path, 'size', size, `at most ${LIMITS.remapFileBytesMax} bytes`);
    }
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof RestoreError) throw error;
    throw new RestoreError(
      'bad-remap-file',
      `Remap file ${path} cannot be read: ${messageOf(error)}`,
      { file: path, place: 'file', value: undefined },
      { cause: error },
    );
  }
  return parseRemapFile(text, path);
}

/**
 * Parses the text of a remap file.
 *
 * @param file names the text in errors.
 * @throws {RestoreError} `bad-remap-file`.
 */
export function parseRemapFile(text: string, file: string): RemapFile {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (error) {
    throw new RestoreError(
      'bad-remap-file',
      `Remap file ${file} is no JSON: ${messageOf(error)}`,
      { file, place: 'document', value: undefined },
      { cause: error },
    );
  }
  const root = objectAt(document, { file, place: 'document' }, ['format', 'version', 'targets', 'rows']);
  if (root['format'] !== FORMAT) throw bad(file, 'format', root['format'], JSON.stringify(FORMAT));
  if (root['version'] !== VERSION) throw bad(file, 'version', root['version'], String(VERSION));
  const targets = parseTargets(root['targets'], file);
  const rows = parseRows(root['rows'], file, new Set(targets.map((target) => target.name)));
  try {
    return { targets, table: RemapTable.of(rows) };
  } catch (error) {
    if (!isRestoreError(error, 'bad-table')) throw error;
    const { row, reason } = error.details;
    throw new RestoreError(
      'bad-remap-file',
      `Remap file ${file}: rows[${row}] ${reason}`,
      { file, place: `rows[${row}]`, value: rows[row] },
      { cause: error },
    );
  }
}

/** The text of a remap file: what `parseRemapFile` reads back as the same targets and table. */
export function formatRemapFile({ targets, table }: RemapFile): string {
  const lines = (items: readonly object[]): string =>
    items.map((item) => `\n    ${JSON.stringify(item)}`).join(',') + (items.length === 0 ? '' : '\n  ');
  const targetItems = targets.map(({ name, uri, sizeBytes }) => ({
    name,
    ...(uri === undefined ? {} : { uri }),
    ...(sizeBytes === undefined ? {} : { sizeBytes: sizeText(sizeBytes) }),
  }));
  const rowItems = table.rows.map((row) => ({
    source: sizeText(row.sourceOffsetBytes),
    length: sizeText(row.lengthBytes),
    target: row.target,
    offset: sizeText(row.targetOffsetBytes),
  }));
  return `{
  "format": ${JSON.stringify(FORMAT)},
  "version": ${VERSION},
  "targets": [${lines(targetItems)}],
  "rows": [${lines(rowItems)}]
}
`;
}

/**
 * The targets of a remap file, with the URIs of the command line in place of those of the file, if any.
 *
 * @param uris none, or one for each target of the file in its order.
 * @param file names the remap file in errors.
 * @throws {RestoreError} `bad-remap-file` where a target has no URI or the numbers differ.
 */
export function requestsOf(
  remap: Pick<RemapFile, 'targets'>,
  uris: readonly string[],
  file: string,
): TargetRequest[] {
  const { targets } = remap;
  if (uris.length > 0 && uris.length !== targets.length) {
    throw bad(file, 'targets.length', targets.length, `${uris.length}, as many as were given with it`);
  }
  return targets.map((target, index) => {
    const uri = uris[index] ?? target.uri;
    if (uri === undefined)
      throw bad(file, `targets[${index}].uri`, uri, 'a path or URI, here or given with it');
    return { ...target, uri };
  });
}

interface Place {
  readonly file: string;
  readonly place: string;
}

function bad(file: string, place: string, value: unknown, wanted: string): RestoreError<'bad-remap-file'> {
  const found = value === undefined ? 'missing' : JSON.stringify(value).slice(0, 80);
  return new RestoreError('bad-remap-file', `Remap file ${file}: ${place} is ${found}, wanted ${wanted}`, {
    file,
    place,
    value,
  });
}

function parseTargets(value: unknown, file: string): RemapFileTarget[] {
  const names = new Set<string>();
  return arrayAt(value, { file, place: 'targets' }, LIMITS.restoreTargetCountMax).map((item, index) => {
    const place = `targets[${index}]`;
    const target = objectAt(item, { file, place }, ['name', 'uri', 'sizeBytes']);
    const name = textAt(target['name'], { file, place: `${place}.name` });
    if (names.has(name)) throw bad(file, `${place}.name`, name, 'each name once');
    names.add(name);
    return {
      name,
      ...(target['uri'] === undefined ? {} : { uri: textAt(target['uri'], { file, place: `${place}.uri` }) }),
      ...(target['sizeBytes'] === undefined
        ? {}
        : { sizeBytes: sizeAt(target['sizeBytes'], { file, place: `${place}.sizeBytes` }) }),
    };
  });
}

function parseRows(value: unknown, file: string, names: ReadonlySet<string>): RemapRow[] {
  return arrayAt(value, { file, place: 'rows' }, LIMITS.remapRowCountMax).map((item, index) => {
    const place = `rows[${index}]`;
    const row = objectAt(item, { file, place }, ['source', 'length', 'target', 'offset']);
    const target = textAt(row['target'], { file, place: `${place}.target` });
    if (!names.has(target)) throw bad(file, `${place}.target`, target, 'the name of one of the targets');
    return {
      sourceOffsetBytes: sizeAt(row['source'], { file, place: `${place}.source` }),
      lengthBytes: sizeAt(row['length'], { file, place: `${place}.length` }),
      target,
      targetOffsetBytes: sizeAt(row['offset'], { file, place: `${place}.offset` }),
    };
  });
}

function arrayAt(value: unknown, { file, place }: Place, countMax: number): unknown[] {
  if (!Array.isArray(value)) throw bad(file, place, value, 'a list');
  if (value.length > countMax) throw bad(file, `${place}.length`, value.length, `at most ${countMax}`);
  return value;
}

function objectAt(value: unknown, { file, place }: Place, keys: readonly string[]): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw bad(file, place, value, `an object with ${keys.join(', ')}`);
  }
  for (const [key, found] of Object.entries(value)) {
    if (!keys.includes(key)) throw bad(file, `${place}.${key}`, found, `only ${keys.join(', ')}`);
  }
  return Object.fromEntries(Object.entries(value));
}

function textAt(value: unknown, { file, place }: Place): string {
  if (typeof value === 'string' && value !== '') return value;
  throw bad(file, place, value, 'a text that is not empty');
}

/** Bytes as a number, or as text with K, M, G, T; always in whole blocks. */
function sizeAt(value: unknown, { file, place }: Place): number {
  const block = LIMITS.blockSizeBytesMin;
  const bytes = typeof value === 'string' ? parseSize(value) : value;
  if (typeof bytes === 'number' && Number.isSafeInteger(bytes) && bytes >= 0 && bytes % block === 0) {
    return bytes;
  }
  throw bad(file, place, value, `a size in multiples of ${block} bytes, such as 4096 or "64K"`);
}

/** The shortest exact text of a size. */
function sizeText(bytes: number): string {
  if (bytes === 0) return '0';
  for (const [unit, factor] of Object.entries({ T: KIB * GIB, G: GIB, M: MIB, K: KIB })) {
    if (bytes % factor === 0) return `${bytes / factor}${unit}`;
  }
  return String(bytes);
}
