/**
 * How the recovery of a volume begins, where there is a volume already: what is there is looked at, put aside or marked.
 * A new one begins with `createVolume`.
 *
 *     home missing          what is left of it goes to <volume>/lost-<id>, and a volume is made in its place
 *     home damaged in part  the damaged tracks are lost from now on: missing in the overwrite map, and changed
 *     under recovery        goes on, perhaps from another place
 *
 * Each is durable before anything is brought in. Who calls these must not have the volume open.
 */

import { mkdir, readdir, rename, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { syncDirectory } from '../base/index.ts';
import { parseDeviceAddress } from '../device/index.ts';
import { TrackSet } from '../tracks/index.ts';
import type { RecoveryRecord } from './backup-side.ts';
import { DIRTY_FOLDER } from './dirty-regions.ts';
import {
  exists,
  homePathOf,
  identityOf,
  lockVolume,
  LOST_PREFIX,
  openState,
  STATE_FILE,
  type VolumeIdentity,
} from './directory.ts';
import { VolumeError } from './errors.ts';
import { Geometry } from './geometry.ts';
import type { RecentRecord } from './recent-use.ts';
import type { VolumeState } from './state.ts';

export interface RecoveryLook {
  readonly identity: VolumeIdentity;
  /** Undefined where the volume is not under recovery. */
  readonly record: RecoveryRecord | undefined;
  /** The home, or a part of it, is a path, and nothing is there. */
  readonly isHomeLost: boolean;
  /** The last recovery of ranges that is over. */
  readonly recovered: RecoveryRecord | undefined;
  /** What was used of late, as far as that is known. */
  readonly recent: RecentRecord | undefined;
}

/** What is in a directory; undefined where it holds no volume. @throws {CorruptionError} */
export async function lookForRecovery(directory: string): Promise<RecoveryLook | undefined> {
  if (!(await exists(join(directory, STATE_FILE)))) return undefined;
  const state = await openState(directory, { readOnly: true });
  try {
    const identity = identityOf(directory, state);
    const isHomeLost = await isLost(directory, identity);
    const { recovery, recent } = state;
    return { identity, record: recovery.record, isHomeLost, recovered: recovery.recovered, recent };
  } finally {
    await state.close();
  }
}

/** Of a home with a layout: any part of it, and of a mirror all members. */
async function isLost(directory: string, { home, layout }: VolumeIdentity): Promise<boolean> {
  if (layout === undefined) return homePathOf(directory, home) !== undefined && isGone(directory, home);
  for (const { kind, members } of layout.extents) {
    const gone = await Promise.all(members.map(({ place }) => isGone(directory, place)));
    if (kind === 'mirror' ? gone.every(Boolean) : gone.some(Boolean)) return true;
  }
  return false;
}

async function isGone(directory: string, place: string): Promise<boolean> {
  const { scheme, target } = parseDeviceAddress(place);
  return scheme === 'file' && !(await exists(resolve(directory, target)));
}

/** What was put aside last of a volume whose place was not taken yet: a recovery was interrupted there. */
export async function lookForLost(directory: string): Promise<RecoveryLook | undefined> {
  if (!(await exists(directory))) return undefined;
  const aside = (await readdir(directory)).filter((name) => name.startsWith(LOST_PREFIX));
  const found = await Promise.all(
    aside.map(async (name) => ({ name, atMs: (await stat(join(directory, name))).mtimeMs })),
  );
  const [last] = found.toSorted((a, b) => b.atMs - a.atMs);
  return last === undefined ? undefined : lookForRecovery(join(directory, last.name));
}

/**
 * Puts aside what is left of a volume without a home, so that one can be made in its place. Nothing is deleted.
 *
 * @returns the directory with what was put aside.
 * @throws {VolumeError} `in-use`
 */
export async function putLostAside({ directory, volumeId }: VolumeIdentity): Promise<string> {
  const lock = await lockVolume(directory, 'recover');
  try {
    const taken = await readdir(directory);
    const base = `${LOST_PREFIX}${volumeId.slice(0, 8)}`;
    let name = base;
    for (let number = 2; taken.includes(name); number += 1) name = `${base}-${number}`;
    const aside = join(directory, name);
    await mkdir(aside, { mode: 0o700 });
    const parts = taken.filter(
      (one) => one === 'snapshots' || one === DIRTY_FOLDER || /^intent-\d+\.log$/.test(one),
    );
    // The state last: as long as it is there, this can be done again.
    for (const part of [...parts, STATE_FILE]) await rename(join(directory, part), join(aside, part));
    await syncDirectory('volume-directory', aside);
    await syncDirectory('volume-directory', directory);
    return aside;
  } finally {
    await lock.close();
  }
}

/** The recovery goes on from the place that the record names. @throws {VolumeError} `in-use` */
export async function moveRecovery(directory: string, record: RecoveryRecord): Promise<void> {
  await withState(directory, (state) => state.recovery.saveRecord(record));
}

/**
 * Gives up tracks of a home that is there: they are read from the side from now on, and count as changed.
 *
 * @throws {VolumeError} `in-use`, `has-snapshots`
 */
export async function loseTracks(directory: string, record: RecoveryRecord, lost: TrackSet): Promise<void> {
  await withState(directory, async (state) => {
    const { name, sizeBytes, trackSizeBytes } = identityOf(directory, state);
    const { trackCount } = new Geometry(sizeBytes, trackSizeBytes);
    const [snapshot] = state.snapshots();
    if (snapshot !== undefined) {
      const message = `Volume ${name} has the snapshot ${snapshot.name}, which may need what the damaged range held; delete its snapshots first`;
      throw new VolumeError('has-snapshots', message, { directory, snapshot: snapshot.name });
    }
    const current = TrackSet.all(trackCount).difference(lost);
    await state.saveLost({ record, current, trackCount }, lost);
  });
}

async function withState(directory: string, body: (state: VolumeState) => Promise<void>): Promise<void> {
  const lock = await lockVolume(directory, 'recover');
  try {
    const state = await openState(directory, { readOnly: false });
    try {
      await body(state);
    } finally {
      await state.close();
    }
  } finally {
    await lock.close();
  }
}
