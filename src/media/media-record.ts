/**
 * What a store remembers of media: which of them hold which of its sets, and what went wrong with them.
 *
 *     media/<writing>.json   the catalog of one writing, as at the end of its latest medium
 *     media/log              a line of JSON for each failure, oldest first; media/log.1 is the one before it
 *
 * These files are no part of the store's catalog and are not lost with it. Each writing has a file of its own,
 * replaced as a whole, so that no two sessions write one file. They say what was written, not that it is still
 * there.
 */

import { mkdir, open, readdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import {
  appendLogLine,
  CorruptionError,
  syncDirectory,
  syncFile,
  syncPath,
  systemCode,
} from '../base/index.ts';
import { mediumError } from './errors.ts';
import { decodeCatalog, encodeCatalog, type MediaCatalog } from './medium-format.ts';

const FOLDER = 'media';
const LOG = 'log';

/** Replaces what the store remembers of the catalog's writing, durably. @throws {MediaError} `io`. */
export async function recordMedia(storePath: string, catalog: MediaCatalog): Promise<void> {
  const folder = join(storePath, FOLDER);
  const path = join(folder, `${catalog.writing}.json`);
  try {
    await makeFolder(storePath, folder);
    const file = await open(`${path}.new`, 'w', 0o600);
    try {
      await file.writeFile(encodeCatalog(catalog));
      await syncFile('media-record', file.fd, `${path}.new`);
    } finally {
      await file.close();
    }
    await rename(`${path}.new`, path);
    await syncDirectory('media-record', folder);
  } catch (error) {
    throw mediumError(error, 'Recording', path);
  }
}

async function makeFolder(storePath: string, folder: string): Promise<void> {
  if ((await mkdir(folder, { recursive: true })) !== undefined)
    await syncDirectory('media-record', storePath);
}

export interface RecordedMedia {
  /** Oldest first. */
  readonly catalogs: readonly MediaCatalog[];
  /** Files that say nothing any more. */
  readonly damaged: readonly string[];
}

/** What the store remembers. @throws {MediaError} `io`. */
export async function readRecordedMedia(storePath: string): Promise<RecordedMedia> {
  const folder = join(storePath, FOLDER);
  const catalogs: MediaCatalog[] = [];
  const damaged: string[] = [];
  for (const name of await namesIn(folder)) {
    if (!name.endsWith('.json')) continue;
    const path = join(folder, name);
    try {
      catalogs.push(decodeCatalog(await readFile(path), path));
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw mediumError(error, 'Reading', path);
      damaged.push(path);
    }
  }
  return { catalogs: catalogs.sort((a, b) => a.createdMs - b.createdMs), damaged };
}

async function namesIn(folder: string): Promise<readonly string[]> {
  try {
    return (await readdir(folder)).sort();
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return [];
    throw mediumError(error, 'Reading', folder);
  }
}

export interface SetOnMedia {
  readonly writing: string;
  readonly label: string;
  readonly createdMs: number;
  /** Numbers of the media that hold part of the set. */
  readonly media: readonly number[];
  /** Whether the writing was finished. */
  readonly isWhole: boolean;
}

/** Which media hold a set, oldest writing first. @throws {MediaError} `io`. */
export async function mediaOfSet(storePath: string, set: string): Promise<readonly SetOnMedia[]> {
  const { catalogs } = await readRecordedMedia(storePath);
  return catalogs.flatMap(({ writing, label, createdMs, isLast, media }) => {
    const holding = media.filter(({ sets }) => sets.some((entry) => entry.set === set));
    const numbers = holding.map(({ medium }) => medium);
    return numbers.length === 0 ? [] : [{ writing, label, createdMs, media: numbers, isWhole: isLast }];
  });
}

export interface MediaLogEntry {
  /** Milliseconds since the Unix epoch. */
  readonly atMs: number;
  readonly action: 'export' | 'import' | 'restore';
  readonly label: string;
  readonly medium: number;
  readonly reason: string;
}

/** Adds a line to the store's log of media, durably. @throws {MediaError} `io`. */
export async function logMedia(storePath: string, entry: MediaLogEntry): Promise<void> {
  const folder = join(storePath, FOLDER);
  const path = join(folder, LOG);
  try {
    await makeFolder(storePath, folder);
    await appendLogLine(path, JSON.stringify(entry));
    await syncPath('media-record', path);
    await syncDirectory('media-record', folder);
  } catch (error) {
    throw mediumError(error, 'Recording', path);
  }
}
