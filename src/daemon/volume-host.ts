/**
 * One open volume with its sessions: what answers the control protocol, and what a command uses that opens
 * the volume itself. The two are one code, so that a command does the same online and offline.
 */

import { type LaneProgress, runBackupSession } from '../backup/index.ts';
import type { Clock } from '../base/index.ts';
import type { DeviceRegistry } from '../device/index.ts';
import { Volume } from '../volume/index.ts';
import type { BackupOutcome, BackupParams } from './backup-params.ts';
import { openContainerAreas } from './container-areas.ts';
import type { ControlHandlers, RequestEvents } from './control-server.ts';
import { type FreezeHookReport, withFreezeHooks } from './freeze-hooks.ts';
import { SessionRegistry } from './sessions.ts';

export interface HostOptions {
  /** What the owner is doing, for whoever is refused: `serving`. */
  readonly activity: string;
  readonly registry: DeviceRegistry;
  readonly readOnly: boolean;
  readonly clock: Clock;
  /** The program of a session's child process; an owner without one runs no backups. */
  readonly workerPath: string;
  /** Is told what the owner's operator must know, whoever asked for it and still listens; a sentence each. */
  readonly warn?: (sentence: string) => void;
}

export class VolumeHost implements ControlHandlers {
  readonly volume: Volume;
  readonly #sessions: SessionRegistry;
  readonly #options: HostOptions;

  private constructor(volume: Volume, options: HostOptions) {
    this.volume = volume;
    this.#options = options;
    this.#sessions = new SessionRegistry({ volumeName: volume.identity.name, clock: options.clock });
  }

  /** Takes the volume's lock and opens it. Errors are those of `Volume.open`. */
  static async open(directory: string, options: HostOptions): Promise<VolumeHost> {
    const { registry, readOnly, clock, activity } = options;
    return new VolumeHost(await Volume.open(directory, { registry, readOnly, clock, activity }), options);
  }

  async show(): Promise<Readonly<Record<string, unknown>>> {
    return { ...this.volume.identity };
  }

  async status(): Promise<Readonly<Record<string, unknown>>> {
    const { session, ...status } = this.volume.status();
    // One session at a time: what the volume counts and what the registry knows are of the same one.
    return { ...status, sessions: this.#sessions.list().map((running) => ({ ...session, ...running })) };
  }

  /**
   * Runs a backup session to its end; see `runBackupSession` and `withFreezeHooks` for its promises and errors.
   * It has not ended before its post-hook has.
   */
  async backup(params: BackupParams, events: RequestEvents): Promise<BackupOutcome> {
    return this.#sessions.run('backup', async (session) => {
      events.session(session.id);
      const { name, trackSizeBytes } = this.volume.identity;
      const areas = await openContainerAreas(params.container, trackSizeBytes);
      let report: FreezeHookReport | undefined;
      const outcome = await runBackupSession({
        volume: this.volume,
        storePath: params.store,
        level: params.level,
        codec: params.codec,
        areas,
        workerPath: this.#options.workerPath,
        signal: session.signal,
        aroundFreeze: async (freeze, signal) => {
          const { clock } = this.#options;
          const warn = (sentence: string): void => this.#warn(sentence, events);
          const context = { volumes: [name], store: params.store, clock, signal, warn };
          ({ report } = await withFreezeHooks(params.hooks, context, freeze));
        },
        onProgress: (progress: LaneProgress) => {
          session.note(progress);
          events.progress(progress);
        },
      });
      return { ...outcome, ...report };
    });
  }

  async cancel(session: string | undefined): Promise<{ readonly session: string }> {
    return { session: await this.#sessions.cancel(session) };
  }

  /** Cancels what runs, waits for it, and starts nothing more. */
  stopSessions(): Promise<void> {
    return this.#sessions.stop();
  }

  /** Cancels what runs and closes the volume, durably and with its clean mark where it can be. */
  async close(): Promise<void> {
    await this.#sessions.stop();
    await this.volume.close();
  }

  #warn(sentence: string, events: RequestEvents): void {
    this.#options.warn?.(sentence);
    events.warning(sentence);
  }
}
