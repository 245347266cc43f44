/** The program of a thread that reads the chain of a restore. */

import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/index.ts';
import { isChainThreadData, runChainThread } from '../blockset/index.ts';

const data: unknown = workerData;
assert(parentPort !== null && isChainThreadData(data), 'A reader is started as a thread, with its data');
await runChainThread(parentPort, data);
