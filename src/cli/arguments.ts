/** What is typed, read: sizes, container areas, listen addresses, paths and URIs. Pure; every refusal is a usage error. */

import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { LIMITS, parseSize } from '../base/index.ts';
import type { Codec } from '../backup/index.ts';
import type { ContainerSpec } from '../daemon/index.ts';
import { UsageError } from './exit.ts';

const SIZE_WANTED = 'wanted bytes or a number with K, M, G or T, such as 64M';

/** @throws {UsageError} when the text is no size. */
export function readSize(option: string, text: string): number {
  const bytes = parseSize(text);
  if (bytes === undefined) throw new UsageError(`${option} is '${text}', ${SIZE_WANTED}`);
  return bytes;
}

/** Reads `<offset>+<length>`, each a size. @throws {UsageError} */
export function readRange(
  option: string,
  text: string,
): { readonly offsetBytes: number; readonly lengthBytes: number } {
  const [offset = '', length = '', ...rest] = text.split('+');
  const offsetBytes = parseSize(offset);
  const lengthBytes = parseSize(length);
  if (offsetBytes !== undefined && lengthBytes !== undefined && rest.length === 0) {
    return { offsetBytes, lengthBytes };
  }
  throw new UsageError(`${option} is '${text}', wanted <offset>+<length>, such as 1M+64K`);
}

const TIME_FACTORS: Readonly<Record<string, number>> = { ms: 1, s: 1000, '': 1000, m: 60_000 };

/**
 * Reads `500ms`, `30s`, `2m` or plain seconds as milliseconds, whole ones; the range is inclusive.
 *
 * @throws {UsageError} when the text is no time, or none within the range.
 */
export function readTimeMs(
  option: string,
  text: string,
  range: { readonly min: number; readonly max: number },
): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|)$/.exec(text);
  const timeMs = Math.round(Number(match?.[1]) * (TIME_FACTORS[match?.[2] ?? ''] ?? Number.NaN));
  if (timeMs >= range.min && timeMs <= range.max) return timeMs;
  const wanted = `wanted from ${formatTimeMs(range.min)} to ${formatTimeMs(range.max)}, such as 500ms, 30s or 2m`;
  throw new UsageError(`${option} is '${text}', ${wanted}`);
}

/** `500ms`, `1s`, `10m`: the largest unit that gives a whole number. */
export function formatTimeMs(timeMs: number): string {
  if (timeMs === 0 || timeMs % 1000 !== 0) return `${timeMs}ms`;
  return timeMs % 60_000 === 0 ? `${timeMs / 60_000}m` : `${timeMs / 1000}s`;
}

/**
 * Reads `memory:64M`, `memory:0` or `/var/tmp/area:1G`. The size follows the last colon, so that a path may
 * have some.
 */
export function readContainer(
  texts: readonly string[],
  directory: string,
  option = '--container',
): readonly ContainerSpec[] {
  if (texts.length > LIMITS.containerAreaCountMax) {
    throw new UsageError(
      `${option} is given ${texts.length} times, wanted at most ${LIMITS.containerAreaCountMax}`,
    );
  }
  if (texts.length === 0) return [{ kind: 'memory', sizeBytes: LIMITS.containerBytesDefault }];
  return texts.map((text) => {
    const colon = text.lastIndexOf(':');
    const place = text.slice(0, colon);
    if (colon === -1 || place === '') {
      throw new UsageError(`${option} is '${text}', wanted memory:<size> or <path>:<size>`);
    }
    const sizeBytes = readSize(`The size of ${option} ${place}`, text.slice(colon + 1));
    return place === 'memory'
      ? { kind: 'memory', sizeBytes }
      : { kind: 'path', path: resolve(directory, place), sizeBytes };
  });
}

/** Reads `<volume>` or `<volume>@<snapshot>`; a directory that exists wins over the snapshot of another. */
export async function readVolumeOrSnapshot(
  text: string,
  directory: string,
): Promise<{ readonly volume: string; readonly snapshot?: string }> {
  const volume = absolutePath('The volume', text, directory);
  const at = volume.lastIndexOf('@');
  const slash = volume.lastIndexOf('/');
  if (at <= slash || (await isDirectory(volume))) return { volume };
  const snapshot = volume.slice(at + 1);
  if (at === slash + 1) throw new UsageError(`The volume is '${text}', wanted one in front of the @`);
  if (snapshot === '') throw new UsageError(`The volume is '${text}', wanted a snapshot's name behind the @`);
  return { volume: volume.slice(0, at), snapshot };
}

async function isDirectory(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch {
    return false;
  }
}

export interface ListenAddress {
  readonly host: string;
  /** 0 picks a free port. */
  readonly port: number;
}

/** The level of `--codec fast`: twice as fast as the default, for a third more room. */
const FAST_LEVEL = -5;

/** `zstd`, `zstd:<level>`, `fast` or `none`. @throws {UsageError} */
export function readCodec(
  text: string,
  option = '--codec',
): { readonly codec: Codec; readonly compressionLevel?: number } {
  if (text === 'none' || text === 'zstd') return { codec: text };
  if (text === 'fast') return { codec: 'zstd', compressionLevel: FAST_LEVEL };
  const level = Number(/^zstd:(-?[0-9]{1,2})$/.exec(text)?.[1] ?? NaN);
  const { compressionLevelMin: min, compressionLevelMax: max } = LIMITS;
  if (level >= min && level <= max) return { codec: 'zstd', compressionLevel: level };
  throw new UsageError(
    `${option} is ${text}, wanted zstd, zstd:<level> with a level of ${min} to ${max}, fast or none`,
  );
}

/** Reads `127.0.0.1:10809`, `[::1]:10809`, `localhost:0`. */
export function readListen(text: string, option = '--listen'): ListenAddress {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d+)$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host !== undefined && port <= 65_535) return { host, port };
  throw new UsageError(
    `${option} is '${text}', wanted <host>:<port> with a port up to 65535, such as 127.0.0.1:10809`,
  );
}

export interface RestrictedPlace {
  readonly place: string;
  /** Undefined is every export. */
  readonly exports: readonly string[] | undefined;
}

/**
 * Reads what a listener may serve, behind the last `=`: `127.0.0.1:10809=a,b`. Without it, or with `=*`, that
 * is every export; a place that has a `=` itself therefore needs one of the two behind it. No names at all are
 * refused, since a variable that was left empty must not open everything.
 *
 * @throws {UsageError} when a name is empty.
 */
export function readRestriction(option: string, text: string): RestrictedPlace {
  const equals = text.lastIndexOf('=');
  if (equals === -1) return { place: text, exports: undefined };
  const names = text.slice(equals + 1).split(',');
  if (names.includes('')) {
    throw new UsageError(`${option} is '${text}', wanted export names behind =, such as =a,b, or =* for all`);
  }
  const isAll = names.length === 1 && names[0] === '*';
  return { place: text.slice(0, equals), exports: isAll ? undefined : names };
}

/** Whether a text is a URI with a scheme, rather than a path. */
export function isUri(text: string): boolean {
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(text);
}

/** A path made absolute; a URI as it is. */
export function absolutePlace(text: string, directory: string): string {
  return isUri(text) ? text : resolve(directory, text);
}

/** A path made absolute. `what` names the argument in the refusal of an empty one. */
export function absolutePath(what: string, text: string, directory: string): string {
  if (text === '') throw new UsageError(`${what} is empty, wanted a path`);
  return resolve(directory, text);
}

/** An option that yargs turned into a list because it was given twice. */
export function single<T extends string>(option: string, value: T | readonly T[] | undefined): T | undefined {
  if (value === undefined || typeof value === 'string') return value;
  throw new UsageError(`${option} is given ${value.length} times, wanted once`);
}

/** Options that may be repeated, however often they were. */
export function several(value: readonly (string | number)[] | string | undefined): readonly string[] {
  if (value === undefined) return [];
  return typeof value === 'string' ? [value] : value.map(String);
}
