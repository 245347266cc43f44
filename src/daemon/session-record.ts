/**
 * What is left of a session when it has ended: a line in its store's log, or in the volume's for one to media, and
 * word to the operator where a command for that was given (seeds/2, Fig. 28: a log is written and the operator told).
 *
 * Neither changes what the session came to: what goes wrong here is a warning. Both happen in the process that owns
 * the volume, so also for a command that has gone away and a child that was killed.
 */

import { LIMITS, messageOf, systemCode } from '../base/index.ts';
import { appendSession, type LoggedSession, logSession } from '../blockset/index.ts';
import type { BackupOutcome, BackupParams } from './backup-params.ts';
import type { RequestEvents } from './control-server.ts';
import { describeEnd, hasSucceeded, runHookProcess } from './hook-process.ts';
import type { SessionHandle } from './sessions.ts';
import type { VolumeHost } from './volume-host.ts';

export interface RecordedSession {
  readonly host: VolumeHost;
  readonly session: SessionHandle;
  readonly params: BackupParams;
  readonly events: RequestEvents;
}

/** Runs a session's work, and records how it ended. @throws what the work throws. */
export async function recordSession(
  about: RecordedSession,
  work: () => Promise<BackupOutcome>,
): Promise<BackupOutcome> {
  let outcome: BackupOutcome;
  try {
    outcome = await work();
  } catch (error) {
    await record(about, {
      outcome: about.session.signal.aborted ? 'cancelled' : 'failed',
      error: { code: systemCode(error) ?? null, message: messageOf(error) },
    });
    throw error;
  }
  const { set, level, tracks, bytesRead, bytesStored } = outcome;
  await record(about, { outcome: 'done', set, level, tracks, bytesRead, bytesStored });
  return outcome;
}

async function record(
  about: RecordedSession,
  ended: Pick<LoggedSession, 'outcome' | 'error' | 'set' | 'level' | 'tracks' | 'bytesRead' | 'bytesStored'>,
): Promise<void> {
  const { host, session, params, events } = about;
  const { volumeId, name } = host.volume.identity;
  const line: LoggedSession = {
    session: session.id,
    kind: 'backup',
    volumeId,
    volume: name,
    startedMs: session.startedMs,
    endedMs: host.options.clock.now(),
    steps: session.steps,
    ...ended,
  };
  try {
    // Media have no place for it: the volume they are of keeps it.
    if (params.medium === undefined) await logSession(params.store, line);
    else await appendSession(host.volume.identity.directory, line);
  } catch (error) {
    host.warn(
      `Log of ${params.medium === undefined ? 'store' : 'media'} ${params.store} cannot be written: ${messageOf(error)}`,
      events,
    );
  }
  if (params.notify !== undefined) await notify(about, line, params.notify);
}

async function notify(
  { host, params, events }: RecordedSession,
  line: LoggedSession,
  command: string,
): Promise<void> {
  const end = await runHookProcess({
    command,
    environment: {
      COWBELL_EVENT: `backup-${line.outcome}`,
      COWBELL_VOLUME: line.volume,
      COWBELL_STORE: params.store,
      COWBELL_SESSION: line.session,
      // Taken out where unknown: what this process inherited under these names is about something else.
      COWBELL_SET: line.set,
      COWBELL_ERROR: line.error?.code ?? undefined,
      COWBELL_MESSAGE: line.error?.message,
    },
    timeoutMs: LIMITS.notifyTimeoutMs,
    graceMs: LIMITS.hookGraceMs,
  });
  if (hasSucceeded(end)) return;
  host.warn(`Command that tells of the end of session ${line.session} failed (${describeEnd(end)})`, events);
}
