/**
 * How far verifying has come: where an interrupted run stopped, and where the next sample begins. Kept in the store as
 * one small file (`verify`), beside the sets, and written without the store's lock: of two runs at once one may lose its
 * place, which costs time and nothing else. A damaged file counts as none.
 */

import { join } from 'node:path';
import { CorruptionError, systemCode } from '../base/index.ts';
import { membersOf, readStateFile, writeStateFile } from './state-file.ts';

/** A place in the order of sets and, in a set, of its frames as `SetReader.readPlan` gives them. */
export interface VerifyPlace {
  readonly set: string;
  readonly frame: number;
}

export interface InterruptedRun {
  /** What the run was asked for, and whether it is the same that is asked for now. */
  readonly selector: string;
  readonly next: VerifyPlace;
  /** Ids of the sets that it found damaged. */
  readonly damaged: readonly string[];
}

export interface VerifyState {
  readonly run?: InterruptedRun;
  readonly sample?: VerifyPlace;
}

export function readVerifyState(storePath: string): VerifyState {
  try {
    const members = membersOf(readStateFile(join(storePath, 'verify')));
    const run = membersOf(members.get('run'));
    const next = placeOf(run.get('next'));
    const sample = placeOf(members.get('sample'));
    const damaged = run.get('damaged');
    const ids = Array.isArray(damaged) ? damaged.map(String) : [];
    const selector = run.get('selector');
    return {
      ...(next !== undefined && typeof selector === 'string'
        ? { run: { next, selector, damaged: ids } }
        : {}),
      ...(sample === undefined ? {} : { sample }),
    };
  } catch (error) {
    if (error instanceof CorruptionError) return {};
    throw error;
  }
}

/** @returns false where the store's file system cannot be written. */
export async function writeVerifyState(storePath: string, state: VerifyState): Promise<boolean> {
  try {
    await writeStateFile(join(storePath, 'verify'), { cowbellVerify: 0, ...state });
    return true;
  } catch (error) {
    if (['EROFS', 'EACCES', 'EPERM', 'ENOSPC'].includes(systemCode(error) ?? '')) return false;
    throw error;
  }
}

function placeOf(value: unknown): VerifyPlace | undefined {
  const members = membersOf(value);
  const set = members.get('set');
  const frame = members.get('frame');
  return typeof set === 'string' && typeof frame === 'number' ? { set, frame } : undefined;
}
