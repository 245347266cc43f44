/**
 * The store's log of sessions: one line for each that has ended, however it ended (seeds/2, Fig. 28-29: after an
 * error a log is written).
 *
 * It is written by the process that owns the volume, not by the child that works on the store, since a child that
 * was killed tells nothing. So it is a plain file that is only appended to, and nothing else of the store is
 * touched. It is for people: nothing depends on it, a line that was cut by a crash is passed over, and it is not
 * synced. At `LIMITS.logBytesMax` it becomes `sessions.log.1`, in the place of the one before.
 *
 * In an encrypted store it must tell nothing of the volume but its id: names and messages, which may hold paths,
 * are left out.
 */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { appendLogLine, systemCode } from '../base/index.ts';
import { findMarker } from './store-marker.ts';

export interface LoggedStep {
  readonly state: string;
  /** 0 before the first medium. */
  readonly medium: number;
  readonly atMs: number;
  readonly reason?: string;
}

export interface LoggedSession {
  readonly session: string;
  readonly kind: string;
  readonly volumeId: string;
  readonly volume?: string;
  readonly outcome: 'done' | 'failed' | 'cancelled';
  /** Milliseconds since the Unix epoch. */
  readonly startedMs: number;
  readonly endedMs: number;
  readonly set?: string;
  readonly level?: string;
  readonly tracks?: number;
  readonly bytesRead?: number;
  readonly bytesStored?: number;
  readonly error?: { readonly code: string | null; readonly message?: string };
  readonly steps: readonly LoggedStep[];
}

const NAME = 'sessions.log';

/**
 * Appends a session to the log of the store in a directory; where there is no store, does nothing.
 *
 * @throws the system's error where the file cannot be written; the session's own result is not changed by that.
 */
export async function logSession(store: string, session: LoggedSession): Promise<void> {
  const marker = await findMarker(store);
  if (marker === undefined) return;
  await appendSession(store, marker.isEncrypted ? withoutNames(session) : session);
}

/** Appends a session to the log in a directory that is no store, as it is. @throws as `logSession`. */
export async function appendSession(directory: string, session: LoggedSession): Promise<void> {
  await appendLogLine(join(directory, NAME), JSON.stringify(session));
}

/** The sessions of a store, oldest first, as far as the log goes back. */
export async function readSessionLog(store: string): Promise<readonly LoggedSession[]> {
  const path = join(store, NAME);
  const texts = [await textOf(`${path}.1`), await textOf(path)];
  return texts.flatMap((text) => text.split('\n').flatMap(parse));
}

function withoutNames({ volume: _volume, error, steps, ...session }: LoggedSession): LoggedSession {
  return {
    ...session,
    steps: steps.map(({ state, medium, atMs }) => ({ state, medium, atMs })),
    ...(error === undefined ? {} : { error: { code: error.code } }),
  };
}

/** A line that is no whole session was cut by a crash. */
function parse(line: string): LoggedSession[] {
  try {
    const value: unknown = JSON.parse(line);
    return isSession(value) ? [value] : [];
  } catch {
    return [];
  }
}

function isSession(value: unknown): value is LoggedSession {
  if (typeof value !== 'object' || value === null) return false;
  const has = (name: string, type: string): boolean => typeof Reflect.get(value, name) === type;
  return (
    ['session', 'kind', 'volumeId', 'outcome'].every((name) => has(name, 'string')) &&
    ['startedMs', 'endedMs'].every((name) => has(name, 'number')) &&
    Array.isArray(Reflect.get(value, 'steps'))
  );
}

async function textOf(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return '';
    throw error;
  }
}
