/** A set with delta logs laid over it, as `restore` takes it. */

import {
  type ChainPlanEntry,
  type ChainView,
  Store,
  type StoreKey,
  ThreadedChain,
} from '../blockset/index.ts';
import { createDeviceRegistry, type LogsWish } from '../daemon/index.ts';
import { DeltaReader } from '../delta/index.ts';
import { joinLogs, LoggedSource } from '../restore/index.ts';
import { LIMITS } from '../base/index.ts';
import { chainReaderPath } from './worker-path.ts';

export interface LoggedOptions {
  /** Absolute. */
  readonly storePath: string;
  readonly key?: StoreKey;
  /** As it was typed: the newest set that the logs go on from, of that volume, where it is `latest`. */
  readonly set: string;
  readonly logs: LogsWish;
  /** Nothing will be read of the chain. */
  readonly isPlan: boolean;
  readonly warn: (sentence: string) => void;
}

export class LoggedRestore {
  readonly source: LoggedSource<ChainPlanEntry>;
  readonly header: ChainView['header'];
  readonly findings: readonly string[] = [];
  readonly #reader: DeltaReader;
  readonly #chain: ChainView | ThreadedChain;

  private constructor(
    reader: DeltaReader,
    chain: ChainView | ThreadedChain,
    source: LoggedSource<ChainPlanEntry>,
  ) {
    this.#reader = reader;
    this.#chain = chain;
    this.header = chain.header;
    this.source = source;
  }

  /** @throws {StoreError}, {DeltaError}, {CorruptionError}, {RestoreError} 'no-base' */
  static async open(options: LoggedOptions): Promise<LoggedRestore> {
    const { storePath, key, logs, warn } = options;
    const keyOption = key === undefined ? {} : { key };
    const store = await Store.open(storePath, { readOnly: true, ...keyOption });
    const named = await store.find(options.set);
    const reader = await DeltaReader.open(logs.places, {
      registry: createDeviceRegistry(),
      volumeId: named.header?.volumeId,
      onDamage: warn,
    });
    try {
      const { beforeMs } = logs;
      const isFixed = !options.set.startsWith('latest');
      const { set, startPoint } = await joinLogs(store, reader, {
        beforeMs,
        set: isFixed ? named : undefined,
      });
      const chain = await store.chain((set ?? named).id);
      const index = await reader.index(startPoint, { beforeMs });
      const isSmall = chain.tracks().size * chain.trackSizeBytes < LIMITS.laneBytesMin;
      const threads =
        isSmall || options.isPlan ? undefined : { program: chainReaderPath(), storePath, ...keyOption };
      const reading = threads === undefined ? chain : await ThreadedChain.start(chain, threads);
      return new LoggedRestore(
        reader,
        reading,
        new LoggedSource(set === undefined ? undefined : reading, index),
      );
    } catch (error) {
      await reader.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#reader.close();
    await this.#chain.close();
  }
}
