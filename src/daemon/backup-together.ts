/** The backup of one volume, or of several at one instant: a session for each, which wait for each other. */

import { type DryRun, dryRun, runBackupSession, type SavingProgress } from '../backup/index.ts';
import type { BackupOutcome, BackupParams } from './backup-params.ts';
import { openContainerAreas } from './container-areas.ts';
import type { RequestEvents } from './control-server.ts';
import { FreezeGroup } from './freeze-group.ts';
import { type FreezeHookReport, withFreezeHooks } from './freeze-hooks.ts';
import { realPathOf } from './real-path.ts';
import { recordSession } from './session-record.ts';
import type { SessionHandle } from './sessions.ts';
import type { VolumeHost } from './volume-host.ts';

export interface Member {
  readonly host: VolumeHost;
  /** Of the volume, to be saved in the place of what it holds at the freeze. */
  readonly snapshot: string | undefined;
}

/**
 * Backs the members up, all or none; see `FreezeGroup` for the limits of that, and `runBackupSession` and
 * `withFreezeHooks` for promises and errors. It has not ended before the post-hook has.
 *
 * @param members at least one, no volume twice.
 */
export async function backUpTogether(
  members: readonly Member[],
  params: BackupParams,
  events: RequestEvents,
): Promise<readonly BackupOutcome[]> {
  let report: FreezeHookReport | undefined;
  const group: FreezeGroup = new FreezeGroup({
    count: members.length,
    around: async (freeze) => {
      const [first] = members;
      if (first === undefined) return;
      const context = {
        volumes: members.map(({ host }) => host.volume.identity.name),
        store: params.store,
        clock: first.host.options.clock,
        signal: group.signal,
        warn: (sentence: string) => first.host.warn(sentence, events),
      };
      ({ report } = await withFreezeHooks(params.hooks, context, freeze));
    },
  });
  const tell = progressOf(members.length, events);
  const store = await realPathOf(params.store);
  const backups = members.map(async (member, index) => {
    try {
      const backUp = (session: SessionHandle): Promise<BackupOutcome> => {
        // The others end with it.
        if (index === 0) events.session(session.id);
        return recordSession({ host: member.host, session, params, events }, async () => {
          try {
            const onProgress = (progress: SavingProgress): void => tell(index, progress);
            return await backUpOne(member, params, { group, session, onProgress });
          } catch (error) {
            // The others hear of it before anything is recorded, which may take a while.
            group.fail(error);
            throw error;
          }
        });
      };
      return await member.host.sessions.run('backup', backUp, store);
    } catch (error) {
      group.fail(error);
      throw error;
    }
  });
  const outcomes = await Promise.allSettled(backups);
  // What failed first is why; the others were cancelled for it.
  if (group.signal.aborted) throw group.signal.reason;
  return outcomes
    .filter((outcome) => outcome.status === 'fulfilled')
    .map(({ value }) => ({ ...value, ...report }));
}

/** What `backUpTogether` would read and store. Neither frozen nor written is anything, and no hook runs. */
export async function planTogether(
  members: readonly Member[],
  params: BackupParams,
): Promise<readonly DryRun[]> {
  const plans: DryRun[] = [];
  for (const { host, snapshot } of members) {
    if (snapshot === undefined) host.refuseRollingBack();
    plans.push(
      await dryRun({
        volume: host.volume,
        storePath: params.store,
        ...(params.key === undefined ? {} : { key: params.key }),
        level: params.level,
        ...(params.fullEvery === undefined ? {} : { fullEvery: params.fullEvery }),
        ...(snapshot === undefined ? {} : { snapshot }),
        workerPath: host.options.workerPath,
      }),
    );
  }
  return plans;
}

async function backUpOne(
  { host, snapshot }: Member,
  params: BackupParams,
  run: {
    readonly group: FreezeGroup;
    readonly session: SessionHandle;
    readonly onProgress: (progress: SavingProgress) => void;
  },
): Promise<BackupOutcome> {
  const { volume } = host;
  const { group, session } = run;
  const areas = await openContainerAreas(params.container, volume.identity.trackSizeBytes);
  return runBackupSession({
    volume,
    session: session.id,
    storePath: params.store,
    ...(params.medium === undefined ? {} : { medium: params.medium }),
    ...(params.key === undefined ? {} : { key: params.key }),
    level: params.level,
    ...(params.fullEvery === undefined ? {} : { fullEvery: params.fullEvery }),
    style: params.style,
    areas,
    ...(params.maxWaitMs === undefined ? {} : { waitMsMax: params.maxWaitMs }),
    workerPath: host.options.workerPath,
    signal: AbortSignal.any([session.signal, group.signal]),
    ...(snapshot === undefined ? {} : { snapshot }),
    aroundFreeze: (freeze, over) => {
      // At once: the backup has not ended before the hooks have, which the failure of the group ends.
      const fail = (): void => group.fail(over.reason);
      if (over.aborted) fail();
      over.addEventListener('abort', fail);
      return group.arrive(async () => {
        if (snapshot === undefined) host.refuseRollingBack();
        await freeze();
      });
    },
    begin: (one, request) => group.begin(one, request),
    onSaved: () => group.save(),
    onStep: (step) => session.noteStep(step),
    onProgress: (progress) => {
      session.note(progress);
      run.onProgress(progress);
    },
  });
}

/** The progress of all members as one. */
function progressOf(count: number, events: RequestEvents): (index: number, progress: SavingProgress) => void {
  const each: SavingProgress[] = Array.from({ length: count }, () => ({
    tracksDone: 0,
    tracksTotal: 0,
    bytesRead: 0,
  }));
  return (index, progress) => {
    each[index] = progress;
    events.progress({
      tracksDone: sum(each, 'tracksDone'),
      tracksTotal: sum(each, 'tracksTotal'),
      bytesRead: sum(each, 'bytesRead'),
    });
  };
}

function sum(all: readonly SavingProgress[], member: keyof SavingProgress): number {
  return all.reduce((total, progress) => total + progress[member], 0);
}
