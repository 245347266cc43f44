/** What stands around a transmission: the connection it speaks through, the export it serves, what was agreed on. */

import type { AssertionError } from '../base/index.ts';
import type { BlockDevice } from '../device/index.ts';
import type { Fence } from './fence.ts';
import type { Negotiated } from './handshake.ts';

/** What the transmission needs of its connection. */
export interface TransmissionPort {
  /** Sends the buffers, in order; they must not be changed afterwards. */
  send(buffers: readonly Buffer[]): void;
  /** Bytes handed to `send` that the peer has not taken yet. */
  unsentBytes(): number;
  /** The connection is known to be broken: nothing more will be sent. */
  isBroken(): boolean;
  /** The peer has closed its side, even if not all that it sent was read. */
  isPeerGone(): boolean;
  /** The transmission was blocked and takes input again. */
  resumeInput(): void;
  /** Everything is answered; the connection may be closed once the replies are sent. */
  finished(): void;
  /** The peer broke the protocol in a way that leaves no common ground. */
  hangUp(reason: string): void;
  log(level: 'warning' | 'error', message: string, error?: unknown): void;
  /** A device failed an assertion. The process must not go on as if nothing had happened. */
  programmerError(error: AssertionError): void;
}

/** The export being served. */
export interface TransmissionTarget {
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  readonly fastZeroes: boolean;
  /** Makes the device larger; undefined where clients may not. */
  readonly resize?: ((sizeBytes: number) => Promise<void>) | undefined;
  /** Shared by all connections of the export. */
  readonly fence: Fence;
}

/** What the handshake agreed on. */
export type TransmissionTerms = Pick<Negotiated, 'replies' | 'contexts'>;
