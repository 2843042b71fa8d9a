//! Where orders to tasks are given.
//!
//! Invariant: nobody waits: a task that has too many orders refuses the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moai_transport::ids::TaskId;

use crate::task::{Order, Orders};

/// Where orders to tasks are given. Short critical sections, never across an await.
#[derive(Clone, Default)]
pub struct TaskDirectory(Arc<Mutex<BTreeMap<TaskId, Orders>>>);

/// Why a task does not follow an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is none of that name.
    #[error("there is no task {task}; there are: {}", names(known))]
    Unknown {
        /// The name.
        task: TaskId,
        /// Tasks there are.
        known: Vec<TaskId>,
    },
    /// It has more to do than it can.
    #[error("the task {task} is busy with earlier orders; try again")]
    Busy {
        /// The task.
        task: TaskId,
    },
}

fn names(known: &[TaskId]) -> String {
    if known.is_empty() {
        return "none".to_owned();
    }
    known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl TaskDirectory {
    /// Gives an order to a task.
    ///
    /// # Errors
    /// There is no such task, or it has not followed its earlier orders yet.
    pub fn order(&self, task: &TaskId, order: Order) -> Result<(), OrderError> {
        let tasks = self.tasks();
        let Some(orders) = tasks.get(task) else {
            let known = tasks.keys().cloned().collect();
            return Err(OrderError::Unknown { task: task.clone(), known });
        };
        orders.try_send(order).map_err(|_| OrderError::Busy { task: task.clone() })
    }

    /// Gives an order to every task.
    pub fn order_all(&self, order: Order) {
        for (task, orders) in &*self.tasks() {
            if orders.try_send(order).is_err() {
                tracing::warn!(%task, ?order, "the task is busy with earlier orders");
            }
        }
    }

    pub(super) fn enter(&self, task: TaskId, orders: Orders) {
        self.tasks().insert(task, orders);
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<TaskId, Orders>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
