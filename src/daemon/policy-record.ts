/**
 * What became of a volume's policies, kept in the volume's directory as `policies.json` (FORMAT.md): the last outcomes
 * of each, and the run that is under way. After a restart it says what was missed and what was broken off; where
 * nobody serves the volume it says by when something should have been done.
 *
 * Written as a whole, durably, before a run begins and after it has ended; the holder of the volume's lock alone
 * writes it. A file that is damaged ends nothing: it is told, and what it said is forgotten.
 */

import { join } from 'node:path';
import { CorruptionError, LIMITS, messageOf } from '../base/index.ts';
import { type Cause, CAUSES, type PastRun, type PolicyPast, RUN_STATES } from '../policy/index.ts';
import { readStateFile, writeStateFile } from '../records/index.ts';

export const POLICY_FILE = 'policies.json';
const FORMAT_VERSION = 0;

/** How one run of a policy ended. */
export interface PolicyOutcome extends PastRun {
  readonly dueMs: number;
  readonly cause: Cause;
  /** Why it is not done. */
  readonly reason?: string | undefined;
  /** What went wrong besides, such as its retention. */
  readonly warning?: string | undefined;
  /** Of a backup. */
  readonly set?: string | undefined;
  readonly level?: string | undefined;
  readonly bytesRead?: number | undefined;
  readonly bytesStored?: number | undefined;
  /** The store's id, under which the volume knows what changed since. */
  readonly consumer?: string | undefined;
  /** Sets that its retention removed, or snapshots that were too many. */
  readonly removed?: number | undefined;
  /** Of a snapshot: its name. */
  readonly snapshot?: string | undefined;
}

/** A run that has begun. */
export interface BegunRun {
  readonly dueMs: number;
  readonly cause: Cause;
  readonly startedMs: number;
}

export interface PolicyRecord {
  readonly name: string;
  /** What it does and where, for people. */
  readonly does: string;
  readonly sinceMs: number;
  readonly schedules: string;
  /** By when it should begin next; null where nothing of the clock makes it due. */
  readonly beginByMs: number | null;
  readonly running?: BegunRun | undefined;
  /** The last one that was done, also where it is not among the last ones any more. */
  readonly lastDone?: PolicyOutcome | undefined;
  /** Oldest first. */
  readonly outcomes: readonly PolicyOutcome[];
}

export interface PolicyRecords {
  readonly volumeId: string;
  readonly minimumCopies: number | null;
  readonly policies: readonly PolicyRecord[];
}

/**
 * Reads what was kept; nothing where there is no file, or one of another volume: a copied directory brings its file.
 *
 * @param warn is told of a file that is damaged or of another version, a sentence.
 */
export function readPolicyRecords(
  directory: string,
  volumeId: string,
  warn: (sentence: string) => void,
): PolicyRecords {
  const nothing = { volumeId, minimumCopies: null, policies: [] };
  const path = join(directory, POLICY_FILE);
  try {
    const value = readStateFile(path);
    if (value === undefined) return nothing;
    if (!isRecords(value)) throw new CorruptionError(`File ${path} is none of this version`, { where: path });
    return value.volumeId === volumeId ? value : nothing;
  } catch (error) {
    warn(`What became of the policies of ${directory} is not known: ${messageOf(error)}`);
    return nothing;
  }
}

/** Replaces what was kept, durably. @throws the system's errors. */
export async function writePolicyRecords(directory: string, records: PolicyRecords): Promise<void> {
  const value = { formatVersion: FORMAT_VERSION, ...records };
  await writeStateFile(join(directory, POLICY_FILE), value, 'policy-record');
}

/** What a queue has to know of it. */
export function pastOf({ sinceMs, schedules, lastDone, outcomes }: PolicyRecord): PolicyPast {
  return { sinceMs, schedules, lastDone, runs: outcomes };
}

/** The record with one more outcome, and no run under way. */
export function withOutcome(record: PolicyRecord, outcome: PolicyOutcome): PolicyRecord {
  const { running: _, ...rest } = record;
  const bounded = {
    ...outcome,
    ...(outcome.reason === undefined ? {} : { reason: boundedText(outcome.reason) }),
    ...(outcome.warning === undefined ? {} : { warning: boundedText(outcome.warning) }),
  };
  return {
    ...rest,
    ...(outcome.state === 'done' ? { lastDone: bounded } : {}),
    outcomes: [...record.outcomes, bounded].slice(-LIMITS.policyOutcomeCountMax),
  };
}

/** A run that the end of its process broke off becomes an outcome. */
export function withoutBrokenRun(record: PolicyRecord): PolicyRecord {
  const { running } = record;
  if (running === undefined) return record;
  const reason = 'The serving process ended while it ran';
  return withOutcome(record, { ...running, endedMs: running.startedMs, state: 'interrupted', reason });
}

function boundedText(text: string): string {
  const line = text.replace(/\p{Cc}+/gu, ' ').trim();
  const { policyReasonLengthMax } = LIMITS;
  return line.length > policyReasonLengthMax ? `${line.slice(0, policyReasonLengthMax - 3)}...` : line;
}

// The file is sealed, so a look at what is counted with is enough.

function isRecords(value: unknown): value is PolicyRecords {
  if (!isObject(value) || value['formatVersion'] !== FORMAT_VERSION) return false;
  const { volumeId, policies } = value;
  return typeof volumeId === 'string' && Array.isArray(policies) && policies.every(isRecord);
}

function isRecord(value: unknown): value is PolicyRecord {
  if (!isObject(value) || typeof value['name'] !== 'string' || typeof value['sinceMs'] !== 'number')
    return false;
  const { outcomes, lastDone, running } = value;
  const isRunning = running === undefined || isBegun(running);
  const isLast = lastDone === undefined || isOutcome(lastDone);
  return isRunning && isLast && Array.isArray(outcomes) && outcomes.every(isOutcome);
}

function isOutcome(value: unknown): value is PolicyOutcome {
  if (!isBegun(value) || !isObject(value) || typeof value['endedMs'] !== 'number') return false;
  return RUN_STATES.some((state) => state === value['state']);
}

function isBegun(value: unknown): value is BegunRun {
  if (!isObject(value) || !CAUSES.some((cause) => cause === value['cause'])) return false;
  return typeof value['dueMs'] === 'number' && typeof value['startedMs'] === 'number';
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null;
}
